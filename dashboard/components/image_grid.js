// A grid of tiles: images side by side, a word in the corner, lines below. Text is only ever textContent.

function make(tag, className, text) {
  const element = document.createElement(tag)
  element.className = className
  if (text !== undefined) element.textContent = text
  return element
}

function makeTile(tile, size) {
  const figure = make("figure", "tile")
  const images = make("div", "images")
  tile.images.forEach((source, index) => {
    const frame = make("div", "frame")
    const image = make("img", "image")
    image.src = source
    image.alt = tile.alt[index]
    image.width = image.height = size
    frame.append(image)
    if (index === tile.images.length - 1 && tile.corner) {
      frame.append(make("span", tile.wrong ? "corner wrong" : "corner", tile.corner))
    }
    images.append(frame)
  })
  figure.append(images)
  if (tile.caption) figure.append(make("figcaption", "caption", tile.caption))
  return figure
}

export default function ({ data, parentElement }) {
  const grid = parentElement.querySelector(".grid")
  const headings = data.headings.map((text) => make("span", "heading", text))
  const head = make("div", "headings")
  head.append(...headings)
  grid.replaceChildren(...data.tiles.map((tile) => makeTile(tile, data.size)))
  parentElement.querySelector(".above").replaceChildren(...(headings.length ? [head] : []))
}
