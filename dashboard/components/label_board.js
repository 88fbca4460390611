// A board where a person labels images by keys. What is pressed shows at once, as pending, and stays in a queue
// (and in localStorage) until Python says that it is stored. Text is only ever textContent.

const TOGETHER = 30 // milliseconds: keys this close to one that was sent go together
const AGAIN = 2000 // milliseconds until the queue is sent again
const PATIENCE = 4000 // milliseconds until answers no longer wait for another region
const LONGEST = 8000 // each wait is twice the last up to this; else a page slower than the wait would restart for ever
const MOST_SECONDS = 60
const GAP = 8 // pixels between cells, as in the style sheet
const FRAME = 12 // pixels that a cell is wider than its image
const [SMALLEST, LARGEST] = [96, 144] // pixels of an image on the screen
const MANY = 12 // more classes have a search
const LONG = 12 // characters; longer names take two lines below an image

// What stands, who is next, where things go: pure, and exported for the tests.

// Answers that count, in order: the stored and then the pending ones, without those taken back.
export function standingAnswers(answers, pending) {
  let standing = answers.map((answer) => ({ ...answer, saved: true }))
  for (const { key, undoes, sample, label } of pending) {
    if (undoes !== null) standing = standing.filter((answer) => answer.key !== undoes)
    else if (!standing.some((answer) => answer.key === key)) standing.push({ key, sample, label, saved: false })
  }
  return standing
}

// Of each image its own latest answer, or the region's, or none.
export function shownAnswers(standing, n) {
  const whole = standing.findLast((answer) => answer.sample === null)
  return Array.from({ length: n }, (_, index) => standing.findLast((answer) => answer.sample === index) ?? whole)
}

// The next place after the cursor that is open, round the corner; without one the cursor itself.
export function nextOpen(cursor, open) {
  const order = open.map((_, step) => (cursor + step + 1) % open.length)
  return order.find((index) => open[index]) ?? cursor
}

export function moveCursor(cursor, n, columns, key) {
  const next = cursor + { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key]
  if (next >= 0 && next < n) return next
  const rowsBelow = Math.floor((n - 1) / columns) - Math.floor(cursor / columns)
  return key === "ArrowDown" && rowsBelow > 0 ? n - 1 : cursor
}

// Even rows that fit the width, images enlarged by a whole factor.
export function layOut(n, width, side) {
  const least = side > LARGEST ? LARGEST : side * Math.ceil(SMALLEST / side)
  const fitting = Math.max(1, Math.floor((width + GAP) / (least + FRAME + GAP)))
  const columns = Math.ceil(n / Math.ceil(n / fitting)) || 1
  const room = Math.min(LARGEST, (width + GAP) / columns - GAP - FRAME)
  return { columns, size: side > LARGEST ? room : side * Math.max(1, Math.floor(room / side)) }
}

// Indices of the classes with this name, then of those that begin with it, then of those that hold it.
export function findClasses(names, query) {
  const sought = query.trim().toLowerCase()
  const places = names.map((name) => name.toLowerCase().indexOf(sought))
  const rank = (index) => (places[index] > 0 ? 2 : names[index].length === sought.length ? 0 : 1)
  return [...names.keys()].filter((index) => places[index] >= 0).sort((a, b) => rank(a) - rank(b) || a - b)
}

const count = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`

function countItems(items) {
  const undos = items.filter((item) => item.undoes !== null).length
  const parts = [[items.length - undos, "answer"], [undos, "undo"]].filter(([n]) => n)
  return parts.map(([n, word]) => count(n, word)).join(" and ")
}

// What is saved and what is not; `before` holds the keys that an earlier life of the page left.
export function tellStatus({ trouble, items, before, nAnswers }) {
  const old = items.filter((item) => before.has(item.key))
  const fresh = items.filter((item) => !before.has(item.key))
  const [were, them] = old.length === 1 ? ["was", "it"] : ["were", "them"]
  const parts = old.length ? [`${countItems(old)} from before ${were} not saved; saving ${them} now`] : []
  if (fresh.length) parts.push(`${countItems(fresh)} not saved yet`)
  if (trouble) parts.unshift(trouble)
  if (parts.length) return parts.join(" · ")
  return ["No answers yet", "1 answer saved"][nAnswers] ?? `All ${nAnswers} answers saved`
}

export class Stopwatch {
  constructor(now = () => performance.now()) {
    Object.assign(this, { now, spent: 0, since: null })
  }

  run(running) {
    if (this.since !== null) this.spent += this.now() - this.since
    this.since = running ? this.now() : null
  }

  // Seconds since the last lap while it ran.
  lap() {
    this.run(this.since !== null)
    const seconds = Math.min(MOST_SECONDS, Math.round(this.spent) / 1000)
    this.spent = 0
    return seconds
  }
}

// The queue, with one entry in localStorage for each board that lives, or that ended before all was saved.

const living = new Set() // entries of the boards on this page

function unique() { // randomUUID is missing where the page is not https
  return Array.from(crypto.getRandomValues(new Uint32Array(4)), (word) => word.toString(16).padStart(8, "0")).join("")
}

function readItems(text, subject) {
  const names = ["seq", "undoes", "sample", "label", "seconds", ...Object.keys(subject)]
  try {
    const items = JSON.parse(text)
    const isItem = (item) => typeof item.key === "string" && names.every((name) => name in item)
    return items.every(isItem) ? items : []
  } catch {
    return [] // not ours
  }
}

export class Queue {
  // `send` takes {items, attempt}, and may throw while there is no connection.
  constructor(namespace, subject, send) {
    Object.assign(this, { namespace, subject, send, attempt: 1, wait: AGAIN, acknowledged: new Set() })
    this.entry = `${namespace}:${unique()}`
    living.add(this.entry)
    this.items = []
    this.take(this.entriesLeft().flatMap(([, items]) => items))
    this.before = new Set(this.items.map((item) => item.key))
  }

  take(items) {
    const byKey = new Map([...items, ...this.items].map((item) => [item.key, item]))
    this.items = [...byKey.values()].sort((a, b) => a.seq - b.seq)
  }

  // Go on under another name, with what was left there.
  moveTo(namespace) {
    const moved = new Queue(namespace, this.subject, this.send)
    moved.take(this.items)
    Object.assign(moved, { attempt: this.attempt, acknowledged: this.acknowledged })
    moved.submit() // written under the new name before it goes from the old one
    this.items = []
    this.store()
    this.close()
    return moved
  }

  // Entries of boards that are not on this page, as [name, items].
  entriesLeft() {
    try {
      return Object.keys(localStorage)
        .filter((entry) => entry.slice(0, entry.lastIndexOf(":")) === this.namespace && !living.has(entry))
        .map((entry) => [entry, readItems(localStorage.getItem(entry), this.subject)])
        .filter(([, items]) => items.length)
    } catch {
      return [] // there is no localStorage: the queue lives in memory alone
    }
  }

  add(item) {
    const seq = Math.max(Date.now(), (this.last ?? this.items.at(-1)?.seq ?? 0) + 1)
    this.last = seq
    this.items = [...this.items, { key: unique(), seq, ...item }]
    this.submit()
  }

  // Write, then send: the first at once, what follows closely together.
  submit() {
    if (!this.items.length) return
    this.store()
    this.waiting = true
    if (!this.pause) this.flush()
  }

  flush() {
    if (!this.waiting) return
    clearTimeout(this.pause)
    clearTimeout(this.again)
    this.waiting = false
    this.pause = setTimeout(() => { this.pause = null; this.flush() }, TOGETHER)
    this.again = setTimeout(() => this.sendAgain(Math.min(2 * this.wait, LONGEST)), this.wait)
    try {
      this.send({ items: this.items, attempt: this.attempt })
    } catch {
      // not connected; sent again
    }
  }

  sendAgain(wait = AGAIN) {
    this.attempt += 1
    this.wait = wait
    this.submit()
  }

  // Let go of what is stored, and of entries that others left once all of them is.
  acknowledge(keys) {
    keys.forEach((key) => this.acknowledged.add(key))
    const isOpen = (item) => !this.acknowledged.has(item.key)
    if (this.items.every(isOpen)) return
    this.items = this.items.filter(isOpen)
    this.wait = AGAIN
    this.waiting &&= this.items.length > 0
    if (!this.items.length) clearTimeout(this.again)
    this.store()
    for (const [entry, items] of this.entriesLeft()) if (!items.some(isOpen)) localStorage.removeItem(entry)
  }

  store() {
    try {
      if (this.items.length) localStorage.setItem(this.entry, JSON.stringify(this.items))
      else localStorage.removeItem(this.entry)
    } catch {
      // full, or none
    }
  }

  close() {
    clearTimeout(this.pause)
    clearTimeout(this.again)
    living.delete(this.entry)
  }
}

// The board.

const boards = new WeakMap()

function make(tag, className, text = "") {
  const element = document.createElement(tag)
  element.className = className
  element.textContent = text
  return element
}

function addKey(button, key) {
  const cap = make("kbd", "", key)
  cap.ariaHidden = "true" // else it is part of the button's name
  button.prepend(cap)
  button.setAttribute("aria-keyshortcuts", key)
}

const NOT_TYPED_INTO = ["button", "checkbox", "color", "file", "image", "radio", "range", "reset", "submit"]
const TYPED_INTO = [
  `input${NOT_TYPED_INTO.map((type) => `:not([type=${type}])`).join("")}`, "textarea", "select",
  ...["combobox", "textbox", "searchbox", "spinbutton"].map((role) => `[role=${role}]`),
].join()

function takesText(element) {
  return Boolean(element?.matches(TYPED_INTO) || element?.isContentEditable)
}

// What has the focus, in whatever shadow; null where it is nowhere.
function focusedElement() {
  let element = document.activeElement
  while (element?.shadowRoot?.activeElement) element = element.shadowRoot.activeElement
  return [document.body, document.documentElement].includes(element) ? null : element
}

class Board {
  constructor(parentElement, data) {
    this.root = parentElement.querySelector(".board")
    this.find = (selector) => this.root.querySelector(selector)
    this.focused = () => this.root.getRootNode().activeElement
    Object.assign(this, { id: unique(), calls: 0, cursor: 0, data: {}, search: this.find(".search") })
    Object.assign(this, { moving: false, postponed: [], hint: this.find(".hint") ?? this.addHint() })
    this.queue = new Queue(data.namespace, data.subject, (value) => this.setStateValue("queue", value))
    this.watch = new Stopwatch()
    this.watch.run(!document.hidden)
    this.commands = {
      x: () => this.answer(null), s: () => this.skip(), u: () => this.undo(), r: () => this.toggleWhole(),
      n: () => this.move(1), p: () => this.move(-1), "?": () => this.dialog.showModal(), "/": () => this.search.focus(),
    }
    for (const button of this.root.querySelectorAll(".actions [data-key]")) {
      if (!button.querySelector("kbd")) addKey(button, button.dataset.key)
      button.onclick = () => this.commands[button.dataset.key]()
    }
    this.dialog = this.find(".keys")
    this.dialog.onclose = () => this.focus()
    this.find(".close").onclick = () => this.dialog.close()
    this.find(".again").onclick = () => this.queue.sendAgain()
    this.search.oninput = () => this.filter()
    this.root.onclick = ({ detail, target }) => { // a click by keyboard leaves the focus on its button
      if (detail > 0 && !this.dialog.open && target !== this.search) this.focus()
    }
    this.listen()
  }

  // It takes the room that is free, seen or not: what a click is about to hit never moves.
  addHint() {
    const hint = make("span", "hint", "Click the board to go on with the keys")
    const style = { flex: "1 1 0", minWidth: 0, overflow: "hidden", textOverflow: "ellipsis", whiteSpace: "nowrap" }
    Object.assign(hint.style, { ...style, textAlign: "right" })
    this.find(".report").before(hint)
    return hint
  }

  listen() {
    const until = new AbortController()
    const options = { signal: until.signal, capture: true } // before Streamlit's own keys, of which r is one
    document.addEventListener("keydown", (event) => this.onKey(event), options)
    for (const type of ["focusin", "focusout"]) document.addEventListener(type, () => this.showHint(), options)
    document.addEventListener("visibilitychange", () => this.watch.run(!document.hidden), options)
    window.addEventListener("beforeunload", (event) => {
      if (this.queue.items.length || this.postponed.length) event.preventDefault()
    }, options)
    const sizes = new ResizeObserver(() => this.resize())
    sizes.observe(this.root)
    this.close = () => { until.abort(); sizes.disconnect(); clearTimeout(this.arrival); this.queue.close() }
  }

  focus() {
    this.root.focus({ preventScroll: true })
  }

  // What has the focus outside of the board.
  elsewhere() {
    const element = focusedElement()
    return this.root.contains(element) ? null : element
  }

  showHint() {
    this.hint.style.visibility = takesText(this.elsewhere()) ? "visible" : "hidden"
  }

  update(data, setStateValue, setTriggerValue) {
    const old = this.data
    const changed = (name) => JSON.stringify(old[name]) !== JSON.stringify(data[name])
    Object.assign(this, { data, setStateValue, setTriggerValue })
    if (data.namespace !== this.queue.namespace) this.queue = this.queue.moveTo(data.namespace)
    // The mode ends with the region: a key meant for one image would label all of the next
    if (changed("whole") || changed("subject")) this.whole = data.whole
    this.queue.acknowledge([...data.saved, ...data.answers.map((answer) => answer.key)])
    if (changed("images") || changed("classes")) this.showImages()
    if (changed("classes")) this.showClasses()
    if (changed("subject")) {
      this.watch.lap()
      this.cursor = nextOpen(data.images.length - 1, this.open())
      if (!this.open()[this.cursor]) this.cursor = 0
    }
    this.cursor = Math.max(0, Math.min(this.cursor, data.images.length - 1))
    const away = takesText(focusedElement()) // of a later subject whoever chose it wants to answer
    if (this.calls ? changed("subject") && this.focused() !== this.search : !away) this.focus()
    if (!this.calls) this.queue.submit()
    if (changed("subject") || (data.moved ?? 0) > (old.moved ?? 0)) this.arrive()
    else this.refresh()
    return ++this.calls
  }

  showImages() {
    this.cells = this.data.images.map(({ src, said }, index) => {
      const cell = make("div", "cell")
      const [frame, corner, mark] = [make("div", "frame"), make("span", "corner", this.short(said)), make("div", "mark")]
      corner.title = said ?? ""
      const image = make("img", "image")
      Object.assign(image, { src, alt: "", draggable: false })
      Object.assign(cell, { role: "listitem", id: `${this.id}-${index}` })
      cell.onclick = () => { this.cursor = index; this.refresh() }
      frame.append(image)
      if (said !== null) (this.isLong() ? cell : frame).append(corner) // a long name would hide the image
      cell.prepend(frame)
      cell.append(mark)
      return { cell, corner, mark }
    })
    this.find(".grid").replaceChildren(...this.cells.map(({ cell }) => cell))
    this.resize()
  }

  isLong() {
    return this.data.classes.some(({ name }) => name.length > LONG)
  }

  // A class's name, abbreviated where it is long; the whole is its title.
  short(name) {
    return this.data.classes.find((one) => one.name === name)?.short ?? name ?? ""
  }

  showClasses() {
    const { classes } = this.data
    const held = this.find(".classes").contains(this.focused())
    this.postponed = this.postponed.filter(({ lasts }) => lasts) // the others meant the classes from before
    this.buttons = classes.map(({ name, key }, index) => {
      const button = make("button", "class")
      Object.assign(button, { type: "button", title: name, onclick: () => this.answer(index) })
      button.append(make("span", "name", name))
      if (key !== null) addKey(button, key)
      button.classList.toggle("same", name === key)
      return button
    })
    const order = new Set([...(this.data.first ?? []), ...this.buttons.keys()])
    this.find(".classes").replaceChildren(...[...order].map((index) => this.buttons[index]))
    this.find(".classes").classList.toggle("many", classes.length > MANY)
    for (const part of this.root.querySelectorAll(".finding")) part.hidden = classes.length <= MANY
    this.find(".grid").classList.toggle("long", this.isLong())
    const rows = classes.filter(({ key }) => key !== null).map(({ name, key }) => {
      const row = make("div", "row")
      row.append(make("dt", ""), make("dd", "", name))
      row.firstChild.append(make("kbd", "", key))
      return row
    })
    this.find(".list.of-classes").replaceChildren(...rows)
    this.filter()
    if (held) this.focus()
  }

  resize() {
    const { side, images } = this.data
    const { columns, size } = layOut(images.length, this.root.clientWidth, side)
    this.columns = columns
    this.find(".grid").style.gridTemplateColumns = `repeat(${columns}, minmax(0, ${size + FRAME}px))`
    this.find(".grid").classList.toggle("enlarged", size >= side)
  }

  standing() {
    const { answers, subject } = this.data
    const isHere = (item) => Object.keys(subject).every((name) => item[name] === subject[name])
    return standingAnswers(answers, this.queue.items.filter(isHere))
  }

  // Which images have no answer of their own.
  open() {
    const own = new Set(this.standing().map((answer) => answer.sample))
    return this.cells.map((_, index) => !own.has(index))
  }

  enqueue(item) {
    this.queue.add({ ...item, seconds: this.watch.lap(), ...this.data.subject })
  }

  // Whether a move is under way; then this is done after it.
  postpones(act) {
    if (this.moving) this.postponed.push(act)
    return this.moving
  }

  answer(label) {
    if (this.postpones(() => this.answer(label)) || !this.cells.length) return
    this.enqueue({ undoes: null, sample: this.whole ? null : this.cursor, label })
    if (!this.whole) this.cursor = nextOpen(this.cursor, this.open())
    this.refresh(true)
  }

  undo() {
    if (this.postpones(() => this.undo())) return
    const latest = this.standing().at(-1)
    if (!latest) return
    this.enqueue({ undoes: latest.key, sample: latest.sample, label: latest.label })
    if (latest.sample !== null) this.cursor = Math.min(latest.sample, this.cells.length - 1)
    this.refresh(true)
  }

  skip() {
    if (this.postpones(() => this.skip())) return
    const next = nextOpen(this.cursor, this.open())
    this.cursor = next === this.cursor ? (next + 1) % (this.cells.length || 1) : next
    this.refresh(true)
  }

  toggleWhole() {
    if (this.postpones(() => this.toggleWhole())) return
    this.whole = !this.whole
    this.refresh()
  }

  point(key) {
    if (this.postpones(() => this.point(key))) return
    this.cursor = moveCursor(this.cursor, this.cells.length, this.columns, key)
    this.refresh(true)
  }

  // Until the other region is here a key would label this one: all that follows waits, `PATIENCE` at most.
  move(step) {
    if (this.postpones(Object.assign(() => this.move(step), { lasts: true }))) return
    this.queue.flush()
    this.moving = true
    clearTimeout(this.arrival)
    this.arrival = setTimeout(() => this.arrive(), PATIENCE)
    this.refresh()
    try {
      this.setTriggerValue("move", step)
    } catch {
      this.arrive() // not connected
    }
  }

  // Do what waited, up to the next move.
  arrive() {
    this.moving = false
    clearTimeout(this.arrival)
    while (!this.moving && this.postponed.length) this.postponed.shift()()
    this.refresh()
  }

  filter() {
    const names = this.data.classes.map(({ name }) => name)
    const found = findClasses(names, this.search.value)
    this.first = this.search.value.trim() ? found[0] : undefined
    this.buttons.forEach((button, index) => {
      button.hidden = !found.includes(index)
      button.classList.toggle("first", index === this.first)
    })
    this.find(".nothing").textContent = found.length ? "" : "No class has this in its name"
  }

  onKey(event) {
    if (event.defaultPrevented || event.isComposing || event.ctrlKey || event.altKey || event.metaKey) return
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key
    const other = this.elsewhere() // a button there needs its arrows, Enter and space
    if (other && (takesText(other) || key.length > 1 || key === " ")) return
    if (other?.closest(".board, [aria-modal=true]")) return
    const searching = this.focused() === this.search
    const taken = searching ? this.searchKey(key) : this.boardKey(key, event.repeat)
    if (taken) event.preventDefault()
    if (taken || searching) event.stopPropagation()
  }

  searchKey(key) {
    if (key === "Enter" && this.first !== undefined) this.answer(this.first)
    else if (key !== "Escape") return key === "Enter"
    this.search.value = ""
    this.filter()
    this.focus()
    return true
  }

  boardKey(key, repeated) {
    if (this.dialog.open) { // which hides what a key would label
      if (key === "?" || key === "Escape") this.dialog.close()
      return key === "Escape" || (key.length === 1 && key !== " ")
    }
    if (key.startsWith("Arrow")) {
      this.point(key)
      return true
    }
    const label = this.data.classes.findIndex((one) => one.key === key)
    const command = Object.hasOwn(this.commands, key) ? this.commands[key] : () => this.answer(label)
    if (command !== this.commands[key] && label < 0) return false
    if (key === "/" && this.find(".find").hidden) return false
    if (!repeated) command() // a key held down is one answer
    return true
  }

  // Bring what is shown in line with data, queue and cursor; nothing is built anew.
  refresh(follow = false) {
    const { trouble, images } = this.data
    const { items, before } = this.queue
    const standing = this.standing()
    const shown = shownAnswers(standing, images.length)
    const nDone = shown.filter(Boolean).length
    const nAnswers = new Set(standing.map((answer) => answer.sample)).size
    shown.forEach((answer, index) => this.mark(index, answer))
    const here = this.cells[this.cursor]?.cell
    this.root.setAttribute("aria-activedescendant", here?.id ?? "")
    if (follow) here?.scrollIntoView({ block: "nearest" })
    this.find(".grid").classList.toggle("whole", this.whole)
    this.find(".grid").ariaBusy = String(Boolean(this.moving))
    this.find("[data-key=r]").ariaPressed = String(this.whole)
    this.find("[data-key=u]").disabled = !standing.length
    this.find("[data-key=n]").classList.toggle("due", images.length > 0 && nDone === images.length)
    const whole = this.whole ? " · whole region: one key answers for all of them" : ""
    this.find(".progress").textContent = `${nDone} of ${count(images.length, "image")} answered${whole}`
    const [status, text] = [this.find(".status"), tellStatus({ trouble, items, before, nAnswers })]
    if (status.textContent !== text) status.textContent = text // else it is read aloud again
    const state = trouble ? "trouble" : items.length ? "pending" : nAnswers ? "saved" : "empty"
    this.find(".report").className = `report ${state}`
    this.find(".again").hidden = !trouble || !items.length
    this.showHint()
  }

  mark(index, answer) {
    const { classes, images } = this.data
    const { cell, corner, mark } = this.cells[index]
    const said = images[index].said
    const ofRegion = answer?.sample === null
    const given = answer?.label === null ? "none" : (classes[answer?.label]?.name ?? `class ${answer?.label}`)
    const name = answer ? given : ""
    cell.classList.toggle("here", index === this.cursor)
    cell.ariaCurrent = String(index === this.cursor)
    corner.classList.toggle("wrong", Boolean(answer) && name !== said)
    mark.className = `mark${answer ? (answer.saved ? " saved" : " pending") : ""}${ofRegion ? " region" : ""}`
    mark.textContent = this.short(name)
    mark.title = name
    const state = `${name}${ofRegion ? " as the whole region" : ""}, ${answer?.saved ? "" : "not "}saved`
    const prediction = said === null ? "" : `; the classifier says ${said}`
    cell.ariaLabel = `Image ${index + 1}: ${answer ? state : "no answer"}${prediction}`
  }
}

export default function ({ data, parentElement, setStateValue, setTriggerValue }) {
  const board = boards.get(parentElement) ?? new Board(parentElement, data)
  boards.set(parentElement, board)
  const call = board.update(data, setStateValue, setTriggerValue)
  return () => { // Streamlit may run that of a call which another has followed: only the last one ends the board
    if (board.calls !== call) return
    board.close()
    boards.delete(parentElement)
  }
}
