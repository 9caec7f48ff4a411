// How a page looks, for test_browser.py.

// Text that overlaps other text: rectangles of all text on the page, cut to what its scrolling containers show.
function overlaps() {
  const boxes = [], found = [], range = document.createRange();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement;
    if (!node.data.trim() || parent.closest("script, style, #tip") || !parent.checkVisibility()) continue;
    range.selectNodeContents(node);
    for (let {left, top, right, bottom} of range.getClientRects()) {
      for (let box = parent; box; box = box.parentElement) {
        const {overflowX, overflowY} = getComputedStyle(box);
        if (box === document.body || box.closest("svg")) continue;
        if (overflowX === "visible" && overflowY === "visible") continue;
        const edge = box.getBoundingClientRect();
        [left, top] = [Math.max(left, edge.left), Math.max(top, edge.top)];
        [right, bottom] = [Math.min(right, edge.right), Math.min(bottom, edge.bottom)];
      }
      if (right - left < 1 || bottom - top < 1) continue;
      const slack = (bottom - top) * 0.22;  // the line box is taller than the letters
      boxes.push({left, right, top: top + slack, bottom: bottom - slack, node});
    }
  }
  boxes.sort((a, b) => a.top - b.top);
  boxes.forEach((a, i) => {
    for (let j = i + 1; j < boxes.length && boxes[j].top < a.bottom; j++) {
      const b = boxes[j];
      if (a.node !== b.node && Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1.5
          && Math.min(a.bottom, b.bottom) - b.top > 1) found.push([a.node.data.trim(), b.node.data.trim()]);
    }
  });
  return found;
}

// Text whose contrast with the page (WCAG) is too low, where it stands on the page's own background.
function faint() {
  const light = (colour) => colour.match(/[\d.]+/g).slice(0, 3).map((c) => Number(c) / 255)
    .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const paper = light(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll("h1, h2, h3, p, dt, dd, th, td, figcaption, a, li, .tag, svg text")]
    .map((element) => {
      const style = getComputedStyle(element), ink = light(element.closest("svg") ? style.fill : style.color);
      return [element.textContent.trim().slice(0, 40), (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05)];
    }).filter(([, ratio]) => ratio < 4.5);
}

// Of the charts that are shown: height of letters in CSS pixels, and text that sticks out at a side of its chart.
function chartText() {
  const shown = [...document.querySelectorAll(".chart text")].filter((text) => text.checkVisibility());
  return {
    heights: shown.map((text) => {
      const {a, b} = text.getScreenCTM();
      return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(a, b);
    }),
    cut: shown.filter((text) => {
      const {left, right} = text.getBoundingClientRect(), chart = text.closest(".chart").getBoundingClientRect();
      return left < chart.left - 1 || right > chart.right + 1;
    }).map((text) => text.textContent.trim()),
    drawings: [...document.querySelectorAll("figure")].map(
      (figure) => [...figure.querySelectorAll("svg")].filter((svg) => svg.checkVisibility()).length),
  };
}
