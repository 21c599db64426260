// Mouse, pen and touch on a panel: a click is a point, a drag is a box.

const FAR = 6; // screen pixels from which on a click is a drag

export function watchPointer(panel, { tool, point, drawn, box }) {
  const { canvas } = panel;
  let from = null;

  // Pixels of the photo under the pointer.
  function place(event) {
    const frame = canvas.getBoundingClientRect(), { width, height } = panel.photo;
    const x = Math.floor((event.clientX - frame.left) / frame.width * width);
    const y = Math.floor((event.clientY - frame.top) / frame.height * height);
    return [Math.min(width - 1, Math.max(0, x)), Math.min(height - 1, Math.max(0, y))];
  }

  const corners = ([x0, y0], [x1, y1]) => [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
  const dragged = (event) => Math.hypot(event.clientX - from.x, event.clientY - from.y) > FAR;

  canvas.addEventListener("pointerdown", (event) => {
    if (!event.isPrimary || event.button === 1) return;
    event.preventDefault();
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    from = { place: place(event), x: event.clientX, y: event.clientY, right: event.button === 2 };
  });
  canvas.addEventListener("pointermove", (event) => {
    if (from && !from.right && dragged(event)) drawn(corners(from.place, place(event)));
  });
  canvas.addEventListener("pointerup", (event) => {
    if (!from) return;
    const { place: begin, right } = from, moved = dragged(event);
    from = null;
    if (moved && !right) box(corners(begin, place(event)));
    else if (right || tool() !== "box") point(begin, right || tool() === "remove" ? 0 : 1);
  });
  canvas.addEventListener("pointercancel", () => { from = null; drawn(null); });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
}
