const buttons = [...document.querySelectorAll('input[name=language]')];
function show() {
  const chosen = buttons.find(each => each.checked).value;
  document.documentElement.lang = chosen;
  document.title = document.querySelector('h1').innerText;
  for (const option of document.querySelectorAll('option')) {
    option.textContent = (chosen === 'zh' && option.dataset.hZh) || option.dataset.h;
  }
}
let kept = null;
try { kept = localStorage.getItem('weitune language'); } catch { /* a page without storage */ }
const wanted = [kept, ...navigator.languages.map(each => each.slice(0, 2))];
const reader = wanted.map(name => buttons.find(each => each.value === name)).find(Boolean);
if (reader) reader.checked = true;
for (const button of buttons) button.addEventListener('change', () => {
  show();
  try { localStorage.setItem('weitune language', button.value); } catch { /* it is not kept */ }
});
show();
