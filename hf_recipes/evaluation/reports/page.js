const field = document.querySelector("#search"), hits = document.querySelector("#hits");
const rows = [...document.querySelectorAll("tr:has(td), article")];
const texts = rows.map(row => row.textContent.toLowerCase());
field.addEventListener("input", () => {
  const wanted = field.value.trim().toLowerCase();
  let count = 0;
  rows.forEach((row, index) => { row.hidden = !texts[index].includes(wanted); count += !row.hidden; });
  hits.textContent = wanted ? `${count.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows` : "";
});
