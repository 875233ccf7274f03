const table = document.getElementById('classes-table'), find = document.getElementById('find');
const body = table.tBodies[0], rows = [...body.rows];
find.parentElement.hidden = false;
find.oninput = () => rows.forEach(row => {
  row.hidden = !row.textContent.toLowerCase().includes(find.value.trim().toLowerCase());
});
[...table.tHead.rows[0].cells].forEach((head, column, heads) => {
  const button = document.createElement('button'), key = row => row.cells[column].dataset.v;
  button.append(...head.childNodes);
  head.append(button);
  button.onclick = () => {
    const up = head.ariaSort !== 'ascending', numbers = head.className === 'n';
    heads.forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    rows.sort((a, b) => !key(a) - !key(b) || (up ? 1 : -1) *
      (numbers ? key(a) - key(b) : key(a).localeCompare(key(b))));
    body.append(...rows);
  };
});
