// Look again while something runs; what is being typed is not disturbed.
const again = () => {
  const busy = [...document.querySelectorAll("input[type=password]")].some((field) => field.value || field === document.activeElement);
  if (busy || document.hidden) setTimeout(again, 1000);
  else location.reload();
};
setTimeout(again, 2500);
