// A grid of tiles: images side by side, a word in the corner or below, lines below. Text is only ever textContent.

function make(tag, className, text) {
  const element = document.createElement(tag)
  element.className = className
  if (text !== undefined) element.textContent = text
  return element
}

const LONG = 6 // characters; a longer word would hide the image, so it stands below

function makeTile(tile, size, isLong) {
  const figure = make("figure", "tile")
  const images = make("div", "images")
  tile.images.forEach((source, index) => {
    const frame = make("div", "frame")
    const image = make("img", "image")
    image.src = source
    image.alt = tile.alt[index]
    image.width = image.height = size
    frame.append(image)
    images.append(frame)
  })
  figure.append(images)
  if (tile.corner) {
    const corner = make("span", `corner${tile.wrong ? " wrong" : ""}${isLong ? " below" : ""}`, tile.corner)
    ;(isLong ? figure : images.lastChild).append(corner)
  }
  if (tile.caption) figure.append(make("figcaption", "caption", tile.caption))
  return figure
}

export default function ({ data, parentElement }) {
  const grid = parentElement.querySelector(".grid")
  const headings = data.headings.map((text) => make("span", "heading", text))
  const head = make("div", "headings")
  head.append(...headings)
  const isLong = data.tiles.some((tile) => tile.corner.length > LONG)
  grid.replaceChildren(...data.tiles.map((tile) => makeTile(tile, data.size, isLong)))
  parentElement.querySelector(".above").replaceChildren(...(headings.length ? [head] : []))
}
