/**
 * Region canvas, part 1: geometry and masks. Pure functions without a page, so that node can test them.
 *
 * Boxes are [left, top, right, bottom] in fractions of the picture, masks Uint8Array of width * height, 255 inside.
 */

export const LEAST = 0.02; // smallest side of a box

export const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
export const round = (box) => box.map((side) => Math.round(side * 1e4) / 1e4);
export const percent = (value) => Math.round(value * 1000) / 10;

export function moved([l, t, r, b], dx, dy) {
  [dx, dy] = [clamp(dx, -l, 1 - r), clamp(dy, -t, 1 - b)];
  return round([l + dx, t + dy, r + dx, b + dy]);
}

/** The box with the sides that `handle` names ("n", "se", …) moved. */
export function resized([l, t, r, b], handle, dx, dy) {
  if (handle.includes("w")) l = clamp(l + dx, 0, r - LEAST);
  if (handle.includes("e")) r = clamp(r + dx, l + LEAST, 1);
  if (handle.includes("n")) t = clamp(t + dy, 0, b - LEAST);
  if (handle.includes("s")) b = clamp(b + dy, t + LEAST, 1);
  return round([l, t, r, b]);
}

export function spanned([x0, y0], [x1, y1]) {
  return round([Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)]);
}

/** Black or white, whichever reads better on "#rrggbb" (WCAG relative luminance), as drawing.py's `ink`. */
export function inkOn(color) {
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const [r, g, b] = channels(color).map((value) => linear(value / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000000" : "#ffffff";
}

/** "#rrggbb" -> [r, g, b], 0 to 255. */
export const channels = (color) => [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));

export const inside = ([x, y], [l, t, r, b]) => x >= l && x <= r && y >= t && y <= b;

// Masks

/** The box around what is painted, null where nothing is. */
export function bounds(pixels, [width, height]) {
  let [l, t, r, b] = [width, height, 0, 0];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!pixels[y * width + x]) continue;
      if (x < l) l = x;
      if (y < t) t = y;
      if (x >= r) r = x + 1;
      b = y + 1;
    }
  }
  return r ? [l / width, t / height, r / width, b / height] : null;
}

export function filled([l, t, r, b], [width, height]) {
  const pixels = new Uint8Array(width * height);
  for (let y = Math.round(t * height); y < Math.round(b * height); y++)
    pixels.fill(255, y * width + Math.round(l * width), y * width + Math.round(r * width));
  return pixels;
}

/** Press a round brush into the pixels: full within (1 - softness) of its radius, falling to nothing at its rim. */
export function stamp(pixels, [width, height], [x, y], brush, softness, erase) {
  const radius = Math.max(0.5, (brush * Math.max(width, height)) / 2);
  const [cx, cy] = [x * width, y * height];
  for (let row = Math.max(0, Math.floor(cy - radius)); row < Math.min(height, cy + radius); row++) {
    for (let column = Math.max(0, Math.floor(cx - radius)); column < Math.min(width, cx + radius); column++) {
      const far = Math.hypot(column + 0.5 - cx, row + 0.5 - cy) / radius;
      if (far > 1) continue;
      const ink = softness ? Math.round(255 * clamp((1 - far) / softness, 0, 1)) : 255;
      const i = row * width + column;
      pixels[i] = erase ? Math.min(pixels[i], 255 - ink) : Math.max(pixels[i], ink);
    }
  }
}

/** The pixels of the box `from`, stretched over the box `to`. */
export function stretched(pixels, [width, height], from, to) {
  const result = new Uint8Array(pixels.length);
  const scale = [0, 1].map((i) => (from[i + 2] - from[i]) / (to[i + 2] - to[i]));
  const [left, top, right, bottom] = to.map((side, i) => Math.round(side * (i % 2 ? height : width)));
  for (let row = top; row < bottom; row++) {
    for (let column = left; column < right; column++) {
      const x = Math.floor((from[0] + ((column + 0.5) / width - to[0]) * scale[0]) * width);
      const y = Math.floor((from[1] + ((row + 0.5) / height - to[1]) * scale[1]) * height);
      result[row * width + column] = pixels[clamp(y, 0, height - 1) * width + clamp(x, 0, width - 1)];
    }
  }
  return result;
}

/** A mask's pixels as RGBA, grey and opaque, and back. */
export function toRGBA(pixels) {
  const bytes = new Uint8ClampedArray(4 * pixels.length).fill(255);
  for (let i = 0; i < pixels.length; i++) bytes[4 * i] = bytes[4 * i + 1] = bytes[4 * i + 2] = pixels[i];
  return bytes;
}

export const fromRGBA = (bytes) => Uint8Array.from({ length: bytes.length / 4 }, (_, i) => bytes[4 * i]);

/** Lay a mask over an RGBA picture (in place) in a colour "#rrggbb", at most `strength` opaque. */
export function tint(bytes, pixels, color, strength) {
  const ink = channels(color);
  for (let i = 0; i < pixels.length; i++) {
    if (!pixels[i]) continue;
    const [new_, old] = [(pixels[i] / 255) * strength, bytes[4 * i + 3] / 255];
    const alpha = new_ + old * (1 - new_);
    for (let c = 0; c < 3; c++) bytes[4 * i + c] = (ink[c] * new_ + bytes[4 * i + c] * old * (1 - new_)) / alpha;
    bytes[4 * i + 3] = 255 * alpha;
  }
}
