"""What the tests of the page ask the browser to compute."""

#: foreground and background of an element, as the browser computed them, and the ratio of their luminances
CONTRASTS = """(() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => { v /= 255;
    return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0.99) return c; } return [255, 255, 255]; };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length || e.closest("svg, .unseen, .skip")) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), e.tagName + "." + e.className + " " + e.textContent.slice(0, 30)]);
  }
  return found.sort((x, y) => x[0] - y[0]);
})()"""

#: collects the durations of long tasks in `long` and of frames in `frames`, in milliseconds
WATCH_FRAMES = """(() => {
  window.long = [];
  window.frames = [];
  new PerformanceObserver((list) => long.push(...list.getEntries().map((entry) => entry.duration)))
    .observe({ type: "longtask" });
  let before = performance.now();
  const tick = (now) => {
    frames.push(now - before);
    before = now;
    window.ticking = requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
})()"""

#: from the top of the list of nodes to its end, a screen each frame
SCROLL_LIST = """new Promise((done) => {
  const list = document.querySelector(".list");
  let left = 75;
  const step = () => {
    list.scrollTop += 600;
    left -= 1;
    if (left) requestAnimationFrame(step); else done();
  };
  step();
})"""

#: when what was asked for is painted
LATER = "new Promise((done) => setTimeout(done, 400))"
