for (const button of document.querySelectorAll('button.copy')) {
  const command = button.previousElementSibling;
  button.hidden = false;
  button.addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(command.textContent.trim());
      button.classList.add('copied');
    } catch {
      getSelection().selectAllChildren(command);
    }
  });
}
