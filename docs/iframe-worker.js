// Lets the search work where the site is opened from a folder: browsers start no worker from a file, so what the worker would
// run runs in a hidden frame. Served over HTTP, nothing here is used. The theme looks for the name IFrameWorker.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.inner = new Promise((ready) => {
        this.frame.addEventListener("load", () => ready(this.fill(this.frame.contentWindow, url)), {once: true});
      });
      document.body.append(this.frame);
    }

    // Makes the window of the frame look like a worker's; resolves to it once the script has run.
    async fill(inner, url) {
      const load = (src) => new Promise((resolve, reject) => {
        const script = Object.assign(inner.document.createElement("script"), {src, onload: resolve, onerror: reject});
        inner.document.head.append(script);
      });
      inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", {data}));
      inner.importScripts = (...urls) => urls.reduce((done, next) => done.then(() => load(next)), Promise.resolve());
      await load(new URL(url, location.href).href);
      return inner;
    }

    postMessage(data) {
      this.inner.then((inner) => inner.dispatchEvent(new inner.MessageEvent("message", {data})));
    }

    terminate() {
      this.frame.remove();
    }
  };
  window.Worker = window.IFrameWorker;
}
