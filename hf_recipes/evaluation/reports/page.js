const field = document.querySelector("#search"), hits = document.querySelector("#hits");
const rows = [...document.querySelectorAll("tr:has(td), article")];
const texts = rows.map(row => row.textContent.toLowerCase());
const folded = [...document.querySelectorAll("details:has(article)")];
field.addEventListener("input", () => {
  const wanted = field.value.trim().toLowerCase();
  let count = 0;
  rows.forEach((row, index) => { row.hidden = !texts[index].includes(wanted); count += !row.hidden; });
  folded.forEach(details => { details.open = wanted !== ""; });
  const numbers = [count, rows.length].map(number => number.toLocaleString("en"));
  hits.textContent = wanted ? numbers.reduce((text, number) => text.replace("{}", number), hits.dataset.text) : "";
});
