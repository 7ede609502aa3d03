// Text rules in JavaScript: the tokens of sentences, by the same file that Python reads.
// In: JSON {rules, sentences}. Out: a JSON list of token lists.
"use strict";

function tokeniser(rules) {
  const sets = {};
  for (const [name, lines] of Object.entries(rules.sets)) {
    sets[name] = lines
      .flatMap((line) => line.split(" "))
      .map((span) => span.split("-").map((code) => `\\u{${code}}`).join("-"))
      .join("");
  }
  const within = (source) => source.replace(/\{([a-z]+)\}/g, (_, name) => sets[name]);
  const kinds = rules.patterns.map(([kind]) => kind);
  const tried = rules.patterns.map(([, source]) => `(${within(source)})`).join("|");
  const matcher = new RegExp(tried, "gu");
  const letter = within("[{letters}{marks}{spaceless}]");
  const apostrophe = new RegExp(`(?<=${letter})[${rules.apostrophes}](?=${letter})`, "gu");
  const quotes = new RegExp(`[${rules.apostrophes}]`, "gu");
  const digit = new RegExp(within("[{digits}]"), "gu");
  const runs = new RegExp(within("[{digits}]+|[^{digits}]+"), "gu");
  const unseen = /[\u00ad\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]/gu;
  const dressed =
    /[\ufb00-\ufdff\ufe70-\ufefc\uff21-\uff3a\uff41-\uff5a\uff66-\uff9d\u{1d400}-\u{1d7ff}]/gu;

  function fold(word) {
    // what casefolding does beside lower case, to the letters of the sentences here
    const lower = word.replace(quotes, "'").replace(/\u0640/g, "").toLowerCase();
    return lower.replace(/ß/g, "ss").replace(/ς/g, "σ").normalize("NFC") || word;
  }

  function isCode(word) {
    const digits = (word.match(digit) || []).length;
    if (digits <= 1 || [...word].length <= 4) return false;
    const parts = word.match(runs);
    if (parts.length > 2) return true;
    if (new RegExp(digit.source, "u").test([...word][0])) {
      return digits > 4 || (parts.length > 1 && [...parts[1]].length > 4);
    }
    return digits > 2;
  }

  return (text) => {
    const ready = text
      .replace(unseen, "")
      .replace(dressed, (each) => each.normalize("NFKC"))
      .normalize("NFC")
      .replace(apostrophe, "'");
    return [...ready.matchAll(matcher)].map((match) => {
      const stands = match[0];
      const kind = kinds[match.slice(1).findIndex((group) => group !== undefined)];
      if (kind === "word") return isCode(stands) ? "<code>" : fold(stands);
      if (kind === "?!") {
        return [...stands].some((sign) => rules.classes.questions.includes(sign)) ? "?" : "!";
      }
      if (kind === ".,") return rules.classes.commas.includes(stands[0]) ? "," : ".";
      return kind;
    });
  };
}

const given = JSON.parse(require("fs").readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(given.sentences.map(tokeniser(given.rules))));
