// Slides over the whole window. Keys, clicks and the place are the browser's alone; text is only ever textContent.

const HIDE_POINTER = 2000 // milliseconds, as all times here
const SHOW_KEYS = 6000
const FORGET_NUMBER = 4000
const GAP = 0.8 // between images, in units of the stage
const LONG = { corner: 7, fact: 14 } // characters, over which a name stands below its images, and a fact is smaller
const states = new WeakMap()

function make(tag, className, ...inside) {
  const element = document.createElement(tag)
  if (className) element.className = className
  element.append(...inside) // strings become text
  return element
}

function makeBar([estimate, low, high], after) {
  const bar = make("div", after ? "bar after" : "bar")
  const fill = make("div", "fill")
  const range = make("div", "range")
  fill.style.width = `${100 * estimate}%`
  Object.assign(range.style, { left: `${100 * low}%`, width: `${100 * (high - low)}%` })
  bar.append(fill, range)
  return bar
}

function makeFigure(figure, after) {
  const value = make("div", "value", make("span", figure.was ? "now" : "", figure.value))
  if (figure.was) value.prepend(make("span", "was", figure.was), make("span", "arrow", "→"))
  const element = make("div", "figure", value, make("div", "label", figure.label))
  const bars = make("div", "bars", ...figure.bars.map((bar, index) => makeBar(bar, after || index > 0)))
  if (figure.bars.length) element.append(bars)
  if (figure.note) element.append(make("div", "note", figure.note))
  return element
}

function makeImage(source, { text, right }, isLong) {
  const open = right === null // nobody said what this image shows
  const image = make("img", "image")
  image.src = source
  image.alt = `predicted as ${text}, ${open ? "not judged" : right ? "right" : "wrong"}`
  image.draggable = false
  const corner = make("span", isLong ? "corner below" : "corner", make("span", "mark", open ? "" : right ? "✓" : "✗"), make("span", "said", text))
  corner.setAttribute("aria-hidden", "true")
  return make("div", open ? "tile open" : right ? "tile" : "tile wrong", image, corner)
}

function makePanel(panel, images) {
  const isLong = panel.said.some(({ text }) => text.length > LONG.corner)
  const grid = make("div", isLong ? "grid named" : "grid", ...images.map((source, index) => makeImage(source, panel.said[index], isLong)))
  return make("section", panel.after ? "panel after" : "panel", makeFigure(panel.figure, panel.after), grid)
}

function makeFact({ label, value, note }) {
  const told = make("dd", "", make("span", "word", value), ...(note ? [make("span", "often", note)] : []))
  return make("div", value.length > LONG.fact ? "fact long" : "fact", make("dt", "", label), told)
}

function makeSlide(slide) {
  const element = make("article", slide.cover ? "slide first" : "slide")
  if (slide.over) element.append(make("div", "over", slide.over))
  element.append(make("h1", "title", slide.title))
  if (slide.facts.length) element.append(make("dl", "facts", ...slide.facts.map(makeFact)))
  if (slide.figures.length) {
    const kind = slide.figures.some((figure) => figure.was) ? "changed" : slide.figures.length < 3 ? "few" : "many"
    const figures = slide.figures.map((figure) => makeFigure(figure, false))
    element.append(make("div", `figures ${kind}`, ...figures))
  }
  if (slide.panels.length) {
    const kind = slide.panels.length > 1 ? "panels" : "panels single"
    element.append(make("div", kind, ...slide.panels.map((panel) => makePanel(panel, slide.images))))
  }
  if (slide.points.length) element.append(make("ul", "points", ...slide.points.map((point) => make("li", "", point))))
  if (slide.text) element.append(make("p", "text", slide.text))
  return element
}

/** Columns that make images of this shape largest in a room; all in pixels. */
// `below` is the height of the name below an image.
function bestColumns(n, { width, height }, gap, shape, below) {
  const sizes = Array.from({ length: n }, (_, index) => {
    const [columns, rows] = [index + 1, Math.ceil(n / (index + 1))]
    const across = (width - gap * (columns - 1)) / columns
    const down = (height - gap * (rows - 1)) / rows - below
    return { columns, side: Math.min(across, down * shape) }
  })
  return sizes.reduce((best, size) => (size.side > best.side ? size : best))
}

class Show {
  constructor(root) {
    const find = (name) => root.querySelector(`.${name}`)
    this.index = 0
    this.typed = ""
    this.timers = {}
    for (const name of ["present", "cover", "stage", "content", "about", "place", "gone", "black", "keys", "live"]) {
      this[name] = find(name)
    }
    this.number = find("typed")
    this.commands = {
      ArrowRight: () => this.go(this.index + 1), " ": () => this.go(this.index + 1), PageDown: () => this.go(this.index + 1),
      ArrowLeft: () => this.go(this.index - 1), PageUp: () => this.go(this.index - 1),
      Home: () => this.go(0), End: () => this.go(Infinity), Enter: () => this.jump(),
      b: () => this.blacken(true), ".": () => this.blacken(true), f: () => this.toggleFullscreen(), "?": () => this.showKeys(),
    }
    this.listen()
    this.observer = new ResizeObserver(() => this.fit())
    this.observer.observe(this.stage)
  }

  listen() {
    this.present.onclick = () => this.open()
    this.cover.onkeydown = (event) => this.key(event)
    this.cover.onclose = () => this.closed()
    this.stage.onclick = (event) => this.click(event)
    this.stage.onpointermove = () => this.wakePointer()
    this.stage.onfullscreenchange = () => { // Escape leaves the browser's full screen, and is told to nobody else
      if (!this.isFull() && !this.asked) this.cover.close()
      this.asked = false
    }
  }

  get slide() { return this.slides[this.index] }

  isFull() { return this.cover.getRootNode().fullscreenElement === this.stage }

  /** Take what Python says, and stay at the slide that is shown, wherever that stands now. */
  take({ slides, about }) {
    const told = JSON.stringify([slides, about])
    if (told === this.told) return
    this.told = told
    const key = this.slides && this.slide.key
    this.slides = slides
    this.about.textContent = about
    const found = slides.findIndex((slide) => slide.key === key)
    this.index = found >= 0 ? found : Math.min(this.index, slides.length - 1)
    if (this.cover.open) this.paint()
  }

  open() {
    this.cover.showModal()
    this.stage.focus()
    this.paint()
    this.wakePointer()
    this.enterFullscreen()
  }

  closed() {
    this.blacken(false)
    this.hideKeys()
    this.type("")
    clearTimeout(this.timers.pointer)
    this.shown = null
    this.live.textContent = ""
    // What is not full screen is inert until that has ended
    this.leaveFullscreen().finally(() => { if (!this.cover.open) this.present.focus() })
  }

  enterFullscreen() { this.stage.requestFullscreen?.().catch(() => {}) } // refused: it covers the window all the same

  async leaveFullscreen() {
    if (!this.isFull()) return
    this.asked = true
    await document.exitFullscreen()
  }

  toggleFullscreen() { return this.isFull() ? this.leaveFullscreen() : this.enterFullscreen() }

  key(event) {
    const { key, ctrlKey, metaKey, altKey } = event
    event.stopPropagation() // the page has keys of its own
    if (key === "Tab") event.preventDefault() // there is nowhere to go
    if (ctrlKey || metaKey || altKey || key === "Escape") return // the browser's
    const name = key.length === 1 ? key.toLowerCase() : key
    const digit = key.length === 1 && key >= "0" && key <= "9"
    if (!digit && !Object.hasOwn(this.commands, name)) return
    event.preventDefault()
    if (!this.black.hidden) return this.blacken(false)
    if (digit) return this.type(this.typed + key)
    this.commands[name]()
    this.type("")
  }

  click({ clientX, detail }) {
    if (detail === 0) return
    if (!this.black.hidden) return this.blacken(false)
    const third = this.stage.clientWidth / 3
    if (clientX < third) this.go(this.index - 1)
    else if (clientX > 2 * third) this.go(this.index + 1)
  }

  go(index) {
    this.hideKeys()
    this.index = Math.max(0, Math.min(index, this.slides.length - 1))
    this.paint()
  }

  jump() { if (this.typed) this.go(Number(this.typed) - 1) }

  type(digits) {
    this.typed = digits.slice(-4)
    this.number.hidden = !this.typed
    this.number.textContent = `go to ${this.typed} ↵`
    clearTimeout(this.timers.number)
    if (this.typed) this.timers.number = setTimeout(() => this.type(""), FORGET_NUMBER)
  }

  blacken(black) {
    if (this.black.hidden === !black) return
    this.black.hidden = !black
    if (this.cover.open) this.say(black ? "Black" : this.spoken())
  }

  showKeys() {
    this.keys.hidden = !this.keys.hidden
    clearTimeout(this.timers.keys)
    if (this.keys.hidden) return
    this.say(Array.from(this.keys.querySelectorAll(".list > div"), (row) => row.textContent.trim()).join(". "))
    this.timers.keys = setTimeout(() => this.hideKeys(), SHOW_KEYS)
  }

  hideKeys() {
    clearTimeout(this.timers.keys)
    this.keys.hidden = true
  }

  wakePointer() {
    this.stage.classList.remove("still")
    clearTimeout(this.timers.pointer)
    this.timers.pointer = setTimeout(() => this.stage.classList.add("still"), HIDE_POINTER)
  }

  say(text) { this.live.textContent = text }

  spoken() {
    const { over, title, text, facts, figures, panels, points } = this.slide
    const numbers = [...figures, ...panels.map((panel) => panel.figure)]
    return [
      `${this.index + 1} of ${this.slides.length}`, over, title, ...facts.map((fact) => `${fact.label} ${fact.value}`),
      ...numbers.map(({ value, label, was }) => `${label}: ${was ? `${was}, then ${value}` : value}`), ...points, text,
    ].filter(Boolean).join(". ")
  }

  paint() {
    const { slide, index, slides } = this
    this.place.textContent = `${index + 1} / ${slides.length}`
    this.gone.style.width = `${(100 * (index + 1)) / slides.length}%`
    const told = JSON.stringify(slide)
    if (told === this.shown) return
    this.shown = told
    this.content.replaceChildren(makeSlide(slide))
    this.fit()
    if (this.black.hidden) this.say(this.spoken())
  }

  /** Make the images as large as there is room, and the type smaller where a slide would not fit. */
  fit() {
    const slide = this.content.firstElementChild
    if (!slide || !this.cover.open) return
    for (const scale of [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4]) {
      slide.style.setProperty("--scale", scale)
      if (slide.scrollHeight <= this.content.clientHeight + 1 && slide.scrollWidth <= slide.clientWidth + 1) break
    }
    const gap = GAP * parseFloat(getComputedStyle(this.stage).getPropertyValue("font-size"))
    for (const grid of slide.querySelectorAll(".grid")) this.fitGrid(grid, gap)
  }

  fitGrid(grid, gap) {
    const first = grid.querySelector(".image")
    if (!first) return
    const arrange = () => {
      const shape = first.naturalWidth / first.naturalHeight || 1
      const room = { width: grid.clientWidth, height: grid.clientHeight }
      const below = grid.classList.contains("named") ? first.nextElementSibling.offsetHeight : 0
      const { columns, side } = bestColumns(grid.children.length, room, gap, shape, below)
      grid.style.gridTemplateColumns = `repeat(${columns}, ${Math.max(8, Math.floor(side))}px)`
      grid.style.gap = `${gap}px`
    }
    arrange()
    if (!first.complete) first.onload = arrange
  }

  end() {
    this.observer.disconnect()
    Object.values(this.timers).forEach(clearTimeout)
    this.leaveFullscreen()
  }
}

export default function ({ data, parentElement }) {
  const root = parentElement.querySelector(".slides")
  const show = states.get(root) ?? new Show(root)
  states.set(root, show)
  show.take(data)
  return () => {
    show.end()
    states.delete(root)
  }
}
