// From a picture's pixels (RGBA, 8 bits) to a model's input: the same arithmetic as edgesparse.web.pictures, which says it.

/** The pixels under each output pixel's triangle, and their weights, along one axis. */
function taps(size, start, step, count) {
  const support = Math.max(step, 1), found = [];
  for (let index = 0; index < count; index++) {
    const centre = start + (index + 0.5) * step;
    const first = Math.max(Math.floor(centre - support - 0.5), 0), end = Math.min(Math.ceil(centre + support + 0.5), size);
    const weights = new Float64Array(end - first);
    let total = 0;
    for (let at = first; at < end; at++) total += weights[at - first] = Math.max(0, 1 - Math.abs(at + 0.5 - centre) / support);
    for (let at = 0; at < weights.length; at++) weights[at] /= total;
    found.push({ first, weights });
  }
  return found;
}

/**
 * The middle of a picture at the model's size: [height, width, 3] with values from 0 to 255.
 * @param {{data: ArrayLike<number>, width: number, height: number}} picture rows of RGBA
 * @param {readonly number[]} dims [1, channels, height, width]
 * @param {{crop: number}} settings
 */
export function takeMiddle({ data, width, height }, [, , rows, columns], { crop }) {
  const step = Math.min(width / columns, height / rows) * crop;
  const across = taps(width, (width - columns * step) / 2, step, columns);
  const down = taps(height, (height - rows * step) / 2, step, rows);
  const top = down[0].first, lines = down[rows - 1].first + down[rows - 1].weights.length - top;
  const squeezed = new Float32Array(lines * columns * 3), values = new Float32Array(rows * columns * 3);
  for (let line = 0; line < lines; line++) {
    const row = 4 * (top + line) * width;
    for (let column = 0; column < columns; column++) {
      const { first, weights } = across[column];
      let r = 0, g = 0, b = 0;
      for (let tap = 0, at = row + 4 * first; tap < weights.length; tap++, at += 4) {
        r += weights[tap] * data[at]; g += weights[tap] * data[at + 1]; b += weights[tap] * data[at + 2];
      }
      const to = 3 * (line * columns + column);
      squeezed[to] = r; squeezed[to + 1] = g; squeezed[to + 2] = b;
    }
  }
  for (let row = 0; row < rows; row++) {
    const { first, weights } = down[row];
    for (let at = 0; at < 3 * columns; at++) {
      let sum = 0;
      for (let tap = 0; tap < weights.length; tap++) sum += weights[tap] * squeezed[3 * columns * (first - top + tap) + at];
      values[3 * columns * row + at] = sum;
    }
  }
  return values;
}

/**
 * ((value / 255) - mean) / std for each channel, channels first. A model of one channel gets the luma of BT.601.
 * @param {Float32Array} values of `takeMiddle`
 * @param {readonly number[]} dims [1, channels, height, width]
 * @param {{mean: number[], std: number[], order: string}} settings a mean and deviation for each channel of the model
 */
export function toTensor(values, [, channels, height, width], { mean, std, order }) {
  const count = height * width;
  const data = new Float32Array(channels * count);
  for (let channel = 0; channel < channels; channel++) {
    const from = order === "bgr" ? 2 - channel : channel;
    for (let at = 0; at < count; at++) {
      const value = channels === 3 ? values[3 * at + from]
        : 0.299 * values[3 * at] + 0.587 * values[3 * at + 1] + 0.114 * values[3 * at + 2];
      data[channel * count + at] = (value / 255 - mean[channel]) / std[channel];
    }
  }
  return data;
}
