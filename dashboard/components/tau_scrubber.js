// A region's draws at many τ, all in one sprite, and their predictions over τ. Moving the slider paints here;
// Python hears of it when the slider is let go. Text is only ever textContent, or painted.

const COLOURS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"] // Okabe and Ito's
const OTHERS = "#8a8a8a"
const [PLAIN, DIFFERS] = ["#0060a0", "#b34700"]
const [LEAST, TALL, GAP] = [56, 300, 6] // of a draw; of a grid that has room to be larger; CSS pixels
const CHART = { height: 200, left: 42, right: 8, top: 8, bottom: 34 }
const KEPT = 240 // durations of paints

const states = new WeakMap() // by .scrubber, which lives as long as the component is shown

const tauText = (tau) => `τ = ${Number(tau.toPrecision(3))}`
const percent = (share) => `${Number((100 * share).toPrecision(3))}\u00a0%`
const rounded = (share) => `${Math.round(100 * share)}\u00a0%`

/** Prediction and count of each, the most frequent first. */
export function count(predictions) {
  const counts = new Map()
  for (const prediction of predictions) counts.set(prediction, (counts.get(prediction) ?? 0) + 1)
  return [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0])
}

/** "10 draws at τ = 0.5: 7 ×8, 9 ×2" */
export function describe(tau, predictions, names) {
  const counts = count(predictions)
  const told = counts.slice(0, COLOURS.length).map(([prediction, n]) => `${names[prediction]} ×${n}`)
  const rest = counts.slice(COLOURS.length).reduce((sum, [, n]) => sum + n, 0)
  if (rest) told.push(`others ×${rest}`)
  return `${predictions.length} draw${predictions.length === 1 ? "" : "s"} at ${tauText(tau)}: ${told.join(", ")}`
}

/** The share of each prediction at each τ: those of the largest maximum, the rest as one. */
export function makeLines(predictions, names) {
  const shares = new Map()
  predictions.forEach((row, index) => {
    for (const [prediction, n] of count(row)) {
      if (!shares.has(prediction)) shares.set(prediction, new Array(predictions.length).fill(0))
      shares.get(prediction)[index] = n / row.length
    }
  })
  const ranked = [...shares].sort((a, b) => Math.max(...b[1]) - Math.max(...a[1]) || a[0] - b[0])
  const lines = ranked.slice(0, COLOURS.length).map(([prediction, values], index) => {
    return { name: names[prediction], colour: COLOURS[index], values }
  })
  const rest = ranked.slice(COLOURS.length)
  if (rest.length) {
    const values = predictions.map((_, index) => rest.reduce((sum, [, shares]) => sum + shares[index], 0))
    lines.push({ name: "others", colour: OTHERS, values })
  }
  return lines
}

/** A grid in screen pixels: every pixel of a draw a whole number of them, larger where all still fit in few rows. */
export function makeGrid({ room, n, width, height, ratio }) {
  const gap = Math.round(GAP * ratio)
  const grid = (factor) => {
    const most = Math.max(1, Math.floor((room + gap) / (width * factor + gap)))
    const rows = Math.ceil(n / most)
    return { factor, gap, rows, columns: Math.ceil(n / rows), tall: rows * (height * factor + gap) - gap }
  }
  const least = Math.ceil((LEAST * ratio) / width)
  let found = grid(Math.max(1, Math.min(least, Math.floor(room / width))))
  for (;;) {
    const next = grid(found.factor + 1)
    if (next.tall > TALL * ratio || next.factor * width > room) return found
    found = next
  }
}

/** A text that fits, with an ellipsis where it had to be cut. */
export function clip(text, room, measure) {
  if (measure(text) <= room) return text
  const letters = Array.from(text)
  let [fits, not] = [0, letters.length]
  while (not - fits > 1) {
    const middle = (fits + not) >> 1
    if (measure(letters.slice(0, middle).join("") + "…") <= room) fits = middle
    else not = middle
  }
  return letters.slice(0, fits).join("") + "…"
}

/** Round values between two, some five of them. */
export function ticks(low, high) {
  if (!(high > low)) return [low]
  const rough = (high - low) / 5
  const size = 10 ** Math.floor(Math.log10(rough))
  const step = size * [1, 2, 5, 10].find((factor) => factor * size >= rough * 0.999)
  const first = Math.ceil(low / step - 1e-6)
  const last = Math.floor(high / step + 1e-6)
  return Array.from({ length: last - first + 1 }, (_, index) => Number(((first + index) * step).toPrecision(12)))
}

function make(tag, className, text = "") {
  const element = document.createElement(tag)
  element.className = className
  element.textContent = text
  return element
}

function shown({ data, index, all }) {
  const row = data.predictions[index]
  return all ? row : row.slice(0, data.shown)
}

function paintCorner({ context, ratio, words, data }, prediction, x, y, width) {
  const side = Math.round(4.8 * ratio)
  if (!words.has(prediction)) {
    const text = clip((data.short ?? data.names)[prediction], width - 2 * side, (part) => context.measureText(part).width)
    const differs = data.label !== null && data.names[prediction] !== data.label
    words.set(prediction, { text, width: context.measureText(text).width, fill: differs ? DIFFERS : PLAIN })
  }
  const word = words.get(prediction)
  const box = Math.min(width, Math.ceil(word.width) + 2 * side)
  context.fillStyle = word.fill
  context.beginPath()
  context.roundRect(x, y, box, Math.round(17 * ratio), [0, 0, 4 * ratio, 0])
  context.fill()
  context.fillStyle = "#fff"
  context.fillText(word.text, x + side, y + 13 * ratio)
}

function paintDraws(state) {
  const { data, index, grid, context, bitmap, parts } = state
  const predictions = shown(state)
  parts.draws.setAttribute("aria-label", describe(data.taus[index], predictions, data.names))
  if (!bitmap || !grid) return
  const [width, height] = [data.width * grid.factor, data.height * grid.factor]
  predictions.forEach((prediction, draw) => {
    const x = (draw % grid.columns) * (width + grid.gap)
    const y = Math.floor(draw / grid.columns) * (height + grid.gap)
    context.drawImage(bitmap, draw * data.width, index * data.height, data.width, data.height, x, y, width, height)
    paintCorner(state, prediction, x, y, width)
  })
}

function paintAxes({ pen, data, ink, wide }, x, y) {
  const [bottom, right] = [y(0), wide - CHART.right]
  pen.fillStyle = pen.strokeStyle = ink
  pen.textAlign = "right"
  pen.textBaseline = "middle"
  for (const share of [0, 0.5, 1]) {
    pen.globalAlpha = share ? 0.15 : 0.4
    pen.fillRect(CHART.left, Math.round(y(share)), right - CHART.left, 1)
    pen.globalAlpha = 0.75
    pen.fillText(rounded(share), CHART.left - 8, y(share))
  }
  const apart = Math.min(...[0, 0.5, 1].map((share) => Math.abs(y(share) - y(data.purity))))
  if (apart >= 13) pen.fillText(percent(data.purity), CHART.left - 8, y(data.purity))
  pen.setLineDash([2, 3])
  pen.lineWidth = 1.25
  pen.beginPath()
  pen.moveTo(CHART.left, y(data.purity))
  pen.lineTo(right, y(data.purity))
  pen.stroke()
  pen.setLineDash([])
  pen.textAlign = "center"
  pen.textBaseline = "alphabetic"
  for (const tau of ticks(data.taus[0], data.taus.at(-1))) pen.fillText(String(tau), x(tau), bottom + 15)
  pen.fillText("τ", (CHART.left + right) / 2, bottom + 30)
  pen.globalAlpha = 1
}

function paintChart(state) {
  const { data, index, lines, pen, ink, paper, wide, ratio } = state
  const [low, high] = [data.taus[0], data.taus.at(-1)]
  const [across, down] = [wide - CHART.left - CHART.right, CHART.height - CHART.top - CHART.bottom]
  const x = (tau) => CHART.left + across * (high > low ? (tau - low) / (high - low) : 0.5)
  const y = (share) => CHART.top + down * (1 - share)
  const now = x(data.taus[index])
  pen.clearRect(0, 0, wide, CHART.height)
  paintAxes(state, x, y)
  pen.fillStyle = ink
  const thick = Math.round(1.5 * ratio) / ratio
  pen.fillRect(Math.round((now - thick / 2) * ratio) / ratio, CHART.top, thick, down) // on whole pixels, so sharp
  pen.lineWidth = 2
  pen.lineJoin = "round"
  for (const { values, colour } of lines.toReversed()) {
    pen.strokeStyle = pen.fillStyle = colour
    pen.beginPath()
    values.forEach((share, at) => pen.lineTo(x(data.taus[at]), y(share)))
    pen.stroke()
  }
  pen.strokeStyle = paper
  for (const { values, colour } of lines.filter((line) => line.values[index]).reverse()) {
    pen.fillStyle = colour
    pen.beginPath()
    pen.arc(now, y(values[index]), 4.5, 0, 2 * Math.PI)
    pen.fill()
    pen.stroke()
  }
}

function tell(state) {
  const { data, index, lines, parts } = state
  const tau = tauText(data.taus[index])
  parts.value.textContent = tau
  parts.slider.setAttribute("aria-valuetext", tau)
  parts.rail.style.setProperty("--filled", index / Math.max(1, data.taus.length - 1))
  lines.forEach(({ share, values }) => { share.textContent = rounded(values[index]) })
  const present = lines.filter(({ values }) => values[index])
  const told = present.map(({ name, values }) => `${name} ${rounded(values[index])}`)
  parts.chart.setAttribute("aria-label", `Share of each prediction over τ, at ${tau}: ${told.join(", ")}`)
  const predictions = shown(state)
  const differ = predictions.filter((prediction) => data.names[prediction] !== data.label).length
  parts.note.hidden = data.label === null && !state.failed
  parts.note.textContent = state.failed
    ? "The draws could not be shown; reload the page"
    : `${differ} of ${predictions.length} draws differ from the label “${data.label}”`
}

function paint(state) {
  const start = performance.now()
  tell(state)
  paintDraws(state)
  if (state.wide) paintChart(state)
  const { paints } = state.parts.draws
  paints.push(performance.now() - start)
  if (paints.length > KEPT) paints.shift()
}

function resize(canvas, width, height, ratio) {
  canvas.width = width
  canvas.height = height
  canvas.style.width = `${width / ratio}px` // the height follows
}

/** Fit both canvases to the page; what is painted is lost. */
function arrange(state) {
  const { parts, data } = state
  const ratio = window.devicePixelRatio
  const [room, wide] = [parts.left.clientWidth, parts.right.clientWidth]
  if (!room) return
  const style = getComputedStyle(parts.root)
  const n = shown(state).length
  Object.assign(state, { room, wide, ratio, ink: style.color, words: new Map() })
  state.paper = style.getPropertyValue("--st-background-color") || "#fff"
  state.grid = makeGrid({ room: Math.floor(room * ratio), n, width: data.width, height: data.height, ratio })
  const { factor, gap, columns, tall } = state.grid
  resize(parts.draws, columns * (data.width * factor + gap) - gap, tall, ratio)
  state.context.imageSmoothingEnabled = false
  state.context.font = `600 ${13 * ratio}px ${style.fontFamily}`
  resize(parts.chart, Math.floor(wide * ratio), Math.round(CHART.height * ratio), ratio)
  state.pen.scale(ratio, ratio)
  state.pen.font = `12px ${style.fontFamily}`
  paint(state)
}

async function load(state) {
  const url = state.data.sprite
  const image = new Image()
  image.src = url
  const font = getComputedStyle(state.parts.root).fontFamily
  const fonts = Promise.allSettled([400, 600].map((weight) => document.fonts.load(`${weight} 13px ${font}`)))
  await image.decode()
  const bitmap = await createImageBitmap(image)
  await fonts
  if (states.get(state.parts.root) !== state || state.data.sprite !== url) return bitmap.close()
  state.bitmap = bitmap
  arrange(state)
}

function begin(root) {
  const parts = { root }
  for (const element of root.querySelectorAll("[class]")) parts[element.className] = element
  parts.draws.paints = []
  const state = { parts, index: 0, all: false, sent: [], context: parts.draws.getContext("2d") }
  state.pen = parts.chart.getContext("2d")
  state.observer = new ResizeObserver(() => {
    const same = state.room === parts.left.clientWidth && state.wide === parts.right.clientWidth
    if (!same || state.ratio !== window.devicePixelRatio) arrange(state)
  })
  state.observer.observe(parts.controls) // as wide as the columns, and no higher when they are
  states.set(root, state)
  return state
}

/** Take what Python says; the slider stays where it is unless Python chose another τ by itself. */
function take(state, data) {
  const before = state.data
  const fresh = before?.sprite !== data.sprite
  const echo = state.sent.indexOf(data.chosen)
  state.data = data
  state.sent = state.sent.slice(echo + 1)
  state.moved = fresh || (echo < 0 && before.chosen !== data.chosen)
  if (state.moved) Object.assign(state, { index: data.chosen, sent: [], held: false })
  state.told ??= data.taus[data.chosen]
  state.lines = makeLines(data.predictions, data.names)
  if (!fresh) return
  state.bitmap?.close()
  state.bitmap = null
  state.failed = false
  load(state).catch(() => {
    if (state.data.sprite !== data.sprite) return
    state.failed = true
    paint(state)
  })
}

function fill(state) {
  const { data, parts, lines } = state
  parts.slider.max = data.taus.length - 1
  parts.slider.value = state.index
  parts.suggested.hidden = parts.notch.hidden = data.suggested === null
  if (data.suggested !== null) {
    parts.suggested.textContent = `Suggested: ${tauText(data.taus[data.suggested])}`
    parts.rail.style.setProperty("--at", data.suggested / Math.max(1, data.taus.length - 1))
  }
  const share = percent(data.purity)
  parts.suggested.title = `The largest τ at which at least ${share} of the draws get the same prediction`
  const n = data.predictions[0].length
  parts.segments.hidden = data.shown >= n
  parts.few.textContent = `${data.shown} draws`
  parts.all.textContent = `all ${n}`
  parts.few.setAttribute("aria-pressed", !state.all)
  parts.all.setAttribute("aria-pressed", state.all)
  parts.heading.textContent = `Predictions of all ${n} draws`
  parts.legend.replaceChildren(...lines.map((line) => {
    const entry = make("li", "entry")
    const swatch = make("span", "swatch")
    swatch.style.background = line.colour
    line.share = make("span", "share")
    entry.append(swatch, make("span", "name", line.name), line.share)
    entry.title = line.name
    return entry
  }))
}

function listen(state, setStateValue) {
  const { parts } = state
  const choose = () => {
    const tau = state.data.taus[state.index]
    if (state.held || tau === state.told) return
    state.told = tau
    state.sent.push(state.index)
    setStateValue("tau", tau)
  }
  const release = () => {
    state.held = false
    choose()
  }
  const show = (all) => () => {
    state.all = all
    fill(state)
    arrange(state)
  }
  parts.slider.oninput = () => {
    state.index = Number(parts.slider.value)
    paint(state)
  }
  parts.slider.onchange = choose
  // A key that is held repeats, which would run the page thirty times a second
  parts.slider.onkeydown = (event) => { state.held = event.repeat }
  parts.slider.onkeyup = parts.slider.onblur = release
  parts.suggested.onclick = () => {
    parts.slider.value = state.data.suggested
    parts.slider.oninput()
    release()
  }
  parts.few.onclick = show(false)
  parts.all.onclick = show(true)
  // Streamlit holds what was sent last, and would not hear of it again after Python chose another
  if (state.moved) choose()
}

export default function ({ data, parentElement, setStateValue }) {
  const root = parentElement.querySelector(".scrubber")
  const state = states.get(root) ?? begin(root)
  take(state, data)
  fill(state)
  listen(state, setStateValue)
  arrange(state)
  return () => {
    state.observer.disconnect()
    state.bitmap?.close()
    state.bitmap = null
    states.delete(root)
  }
}
