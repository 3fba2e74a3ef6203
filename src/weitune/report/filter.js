const form = document.querySelector('form'), rows = [...document.querySelectorAll('article')];
const written = row => [...row.querySelectorAll('pre')].map(
  pre => [...pre.childNodes].map(part => part.className === 'above' ? '' : part.textContent).join('')).join('\n');
function filter() {
  const f = form.elements, least = +f.least.value || 0, most = +f.most.value || Infinity;
  const text = f.text.value.toLowerCase();
  let shown = 0;
  for (const row of rows) {
    const n = +row.dataset.tokens, tags = row.dataset.tags.split('|');
    const fits = n >= least && n <= most && (!f.tag.value || tags.includes(f.tag.value))
      && (!text || written(row).toLowerCase().includes(text));
    row.hidden = !fits; shown += fits;
  }
  for (const told of document.querySelectorAll('#shown span')) {
    told.textContent = told.dataset.text.replace('{0}', shown).replace('{1}', rows.length);
  }
}
form.hidden = false;
form.addEventListener('input', filter); form.addEventListener('submit', e => e.preventDefault()); filter();
