const form = document.querySelector('form'), rows = [...document.querySelectorAll('article')];
function filter() {
  const f = form.elements, least = +f.least.value || 0, most = +f.most.value || Infinity;
  const text = f.text.value.toLowerCase();
  let shown = 0;
  for (const row of rows) {
    const n = +row.dataset.tokens, tags = row.dataset.tags.split('|');
    const fits = n >= least && n <= most && (!f.tag.value || tags.includes(f.tag.value))
      && (!text || row.textContent.toLowerCase().includes(text));
    row.hidden = !fits; shown += fits;
  }
  for (const told of document.querySelectorAll('#shown span')) {
    told.textContent = told.dataset.text.replace('{0}', shown).replace('{1}', rows.length);
  }
}
form.hidden = false;
form.addEventListener('input', filter); form.addEventListener('submit', e => e.preventDefault()); filter();
