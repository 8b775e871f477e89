// The filter's language: words, and conditions such as model=unet loss<0.2 state!=failed seed=0,1 -word "two words".

const CONDITION = /^(-?)([^<>=!~"]*?)(<=|>=|!=|=|<|>|~)(.*)$/s;

/** The columns that a name may mean: its whole key or title, or the end or the beginning of one. */
function meant(name, among) {
  const wanted = name.toLowerCase().replaceAll(" ", "_");
  const spelt = (column) => [column.key, column.title].map((text) => text.toLowerCase().replaceAll(" ", "_"));
  const tests = [(text) => text === wanted, (text) => text.split(/[./]/).at(-1) === wanted, (text) => text.startsWith(wanted),
    (text) => text.includes(wanted)];
  for (const test of tests) {
    const found = among.filter((column) => spelt(column).some(test));
    if (found.length) return found;
  }
  return [];
}

function condition(column, sign, text) {
  const value = text.toLowerCase();
  const number = numeric(text);
  if (["<", "<=", ">", ">="].includes(sign)) {
    if (!column.number) throw Error(`${column.title} is text; use =, != or ~ with it`);
    if (Number.isNaN(number)) throw Error(`${column.title}${sign} needs a number${text ? `, not “${text}”` : ""}`);
    const test = { "<": (x) => x < number, "<=": (x) => x <= number, ">": (x) => x > number, ">=": (x) => x >= number }[sign];
    return (run) => known(column.get(run)) && test(column.get(run));
  }
  if (!text) throw Error(`${column.title}${sign} needs a value`);
  const shown = (run) => String(column.get(run) ?? "").toLowerCase();
  if (sign === "~") return (run) => shown(run).includes(value);
  const range = value.match(/^(.*)\.\.(.*)$/);
  if (column.number && range && !Number.isNaN(numeric(range[1]) + numeric(range[2]))) {
    const inside = (run) => column.get(run) >= numeric(range[1]) && column.get(run) <= numeric(range[2]);
    return sign === "=" ? inside : (run) => !inside(run);
  }
  const same = (run, one) => (column.number && numeric(one) === column.get(run)) || shown(run) === one;
  const any = (run) => value.split(",").some((one) => same(run, one.trim()));
  return sign === "=" ? any : (run) => !any(run);
}

const everything = new Map(runs.map((run) => [run, [run.label, run.state, run.group, ...Object.entries(run.parameters).flat(),
  ...verdicts(run), ...run.samplers.map((one) => one.label)].join("\n").toLowerCase()]));

const titles = () => columns.map((column) => column.title).join(", ");

/** A text as tests of a run, and what is wrong with it in words; what is wrong is passed over. */
function parse(text) {
  const tests = [];
  const faults = [];
  for (const [token] of text.matchAll(/(?:"[^"]*"|[^\s"])+/g)) {
    const plain = token.replaceAll('"', "");
    const match = token.startsWith('"') ? null : plain.match(CONDITION);
    if (!match) {
      const not = plain.startsWith("-") && plain.length > 1;
      const word = (not ? plain.slice(1) : plain).toLowerCase();
      if (word) tests.push((run) => everything.get(run).includes(word) !== not);
      continue;
    }
    const [, not, name, sign, value] = match;
    const found = meant(name, columns);
    try {
      if (!name || !found.length) throw Error(`there is no column “${name}”; the columns are ${titles()}`);
      // `loss` may be the train loss and the held-out loss: the first column that can be compared so.
      const test = condition(found[0], sign, value);
      tests.push(not ? (run) => !test(run) : test);
    } catch (fault) {
      faults.push(fault.message);
    }
  }
  return { test: (run) => tests.every((one) => one(run)), faults };
}

/** A column's own filter: a condition without the name, a range, or a text. */
function narrowed(column, text) {
  const match = text.trim().match(/^(<=|>=|!=|=|<|>|~)?(.*)$/s);
  return condition(column, match[1] ?? (column.number ? "=" : "~"), match[2].trim());
}
