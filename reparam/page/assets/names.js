// What stands where in the page's data, and what every script uses. Texts are only ever set as text.
const [NAME, OP, SETTINGS, MODULE, SHAPE, DTYPE, KIND, STATUS, LINK, AT_X, AT_Y, MACS, PARAMS, WEIGHTS] = Array(14).keys();
const KINDS = ["input", "output", "layer", "norm", "activation", "pool", "merge", "gate", "other"], LAST_END = 1;
const STATUSES = ["same", "weights", "changed", "gone", "new"];
const byId = (id) => document.getElementById(id);
const number = (n) => n.toLocaleString("en");

function make(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== "") made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
