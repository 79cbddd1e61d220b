// From the pixels of a canvas (RGBA, 8 bits) to a model's input: the same arithmetic as edgesparse.web.webdemo.to_tensor.

/**
 * ((pixel / 255) - mean) / std for each channel, channels first. A model of one channel gets the luma of BT.601.
 * @param {Uint8ClampedArray} pixels rows of RGBA
 * @param {readonly number[]} dims [1, channels, height, width]
 * @param {{mean: number[], std: number[]}} settings one number for each channel
 */
export function toTensor(pixels, [, channels, height, width], { mean, std }) {
  const count = height * width;
  const data = new Float32Array(channels * count);
  for (let channel = 0; channel < channels; channel++) {
    for (let at = 0; at < count; at++) {
      const value = channels === 3 ? pixels[4 * at + channel]
        : 0.299 * pixels[4 * at] + 0.587 * pixels[4 * at + 1] + 0.114 * pixels[4 * at + 2];
      data[channel * count + at] = (value / 255 - mean[channel]) / std[channel];
    }
  }
  return data;
}
