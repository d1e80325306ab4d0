// Round figures along an axis.

/** Multiples of 1, 2 or 5 times a power of ten between the two, about `wanted` of them. */
export function ticks(least, most, wanted) {
  const rough = (most - least) / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let index = Math.ceil(least / step - 1e-9); index * step <= most + 1e-9; index += 1) found.push(index * step);
  return found;
}

/** The figure with as many digits as tell it from its neighbours. */
export function tickText(value, all) {
  const step = all.length > 1 ? all[1] - all[0] : 1;
  return value.toFixed(Math.max(0, Math.ceil(-Math.log10(step) - 1e-9)));
}
