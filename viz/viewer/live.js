// The live run of this tab: window.frescoLive = {start, stop, failed}. The page's Run button calls `start` and hands its answer, the
// run's id, to the server; from then on the run's messages are read here, a JSON message a line (viz/page/relay.py), and given to
// the viewer. To stop reading is to stop the run: at Stop, at another Run and when the tab closes.
window.frescoLive = (() => {
  let current = null;                                                      // {run, reading, frames, done}

  function viewer() { return document.querySelector('#viewer .fv-root')?.frescoViewer; }
  function say(text, level = 'info') { viewer()?.receive({ type: 'note', text, level }); }
  function address(run) { return new URL(`fresco/run/${run}`, document.baseURI); }

  function leave() {
    const old = current;
    current = null;
    if (!old || old.done) return null;
    old.reading.abort();
    navigator.sendBeacon(address(old.run));                                // the abort alone may overtake its own request
    return old;
  }

  async function read(live) {
    const take = (line) => {
      if (!line) return;
      const message = JSON.parse(line);
      live.frames += message.type === 'frame';
      live.done ||= message.type === 'done';
      viewer()?.receive(message);
    };
    let why = 'The run ended before its last step; a message of the page says why. Press Run to try again.';
    try {
      const answer = await fetch(address(live.run), { signal: live.reading.signal });
      if (!answer.ok || !answer.body) throw new Error(String(answer.status));
      const reader = answer.body.getReader(), decoder = new TextDecoder();
      for (let rest = '', part = {}; !part.done;) {
        part = await reader.read();
        const lines = (rest + decoder.decode(part.value, { stream: !part.done })).split('\n');
        rest = lines.pop();
        if (current !== live) return;
        lines.forEach(take);
      }
    } catch { why = 'The connection to the server was lost, so this run ended. Press Run to try again.'; }
    if (current !== live) return;
    current = null;
    if (live.done) return;
    if (live.frames) viewer()?.receive({ type: 'done', run: live.run, stopped: true });
    say(live.frames ? why : why.replace('ended before its last step', 'did not start'), 'warn');
  }

  return {
    /** Leaves the run before, if any, and returns the id of a new one. */
    start() {
      const before = leave(), run = [...crypto.getRandomValues(new Uint8Array(8))].map((n) => n.toString(16).padStart(2, '0')).join('');
      current = { run, reading: new AbortController(), frames: 0, done: false };
      say(before?.frames ? 'Finishing the last step of the run before; then this one starts.' : 'Starting…');
      read(current);
      return run;
    },
    /** Ends the run; the steps so far stay. */
    stop() {
      const old = leave();
      if (old?.frames) viewer()?.receive({ type: 'done', run: old.run, stopped: true });
      else if (old) say('Stopped before its first step.');
    },
    /** The server refused the run, and the page shows its sentence. */
    failed() {
      if (!current || current.frames || current.done) return;
      leave();
      say('The run did not start; a message of the page says why.', 'warn');
    },
  };
})();
