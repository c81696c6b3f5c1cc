// Plays a recorded run before the page's own scripts have arrived. A function of [{url, prompt, seed}, ...], the recorded runs in the
// page's order; window.frescoMount is there. When the page builds its own viewer, this one moves into its place and plays on.
(runs) => {
  const start = () => {
    if (!runs.length || document.querySelector('.fv-root')) return;
    const query = new URLSearchParams(location.search), theme = query.get('__theme');
    const asked = runs.find((run) => run.prompt === query.get('prompt') && String(run.seed) === (query.get('seed') ?? '0'));
    if (theme === 'dark' || (theme !== 'light' && matchMedia('(prefers-color-scheme: dark)').matches)) document.body.classList.add('dark');
    const style = document.createElement('style'), holder = document.createElement('div');
    style.textContent = `#fresco-early { max-width: 1280px; margin: 0 auto; padding: 24px 16px; width: 100%; box-sizing: border-box; font-family: system-ui, sans-serif;
  --body-text-color: #1f2937; --background-fill-primary: #fff; --border-color-primary: #d8d6d1; }
.dark #fresco-early { --body-text-color: #eceef2; --background-fill-primary: #14171c; --border-color-primary: #3a404a; }`;
    holder.id = 'fresco-early';
    document.head.append(style);
    document.body.prepend(holder);
    const value = JSON.stringify({ type: 'bundle-url', url: (asked ?? runs[0]).url, linked: Boolean(asked) || !query.has('prompt') });
    window.frescoMount(holder, () => {}, { value }, {}, null, () => {});
  };
  if (document.body) start();
  else document.addEventListener('readystatechange', start, { once: true });
}
