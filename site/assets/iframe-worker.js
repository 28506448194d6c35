// Pages opened from a disk may not start workers, and the theme searches in one: there a hidden frame takes its place.
if (location.protocol == "file:")
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe"), waiting = [];
      frame.hidden = true;
      frame.srcdoc = "<!doctype html>";
      frame.onload = () => {
        const inner = frame.contentWindow, script = inner.document.createElement("script");
        inner.postMessage = data => this.dispatchEvent(new MessageEvent("message", {data}));
        script.onload = () => {
          this.postMessage = data => inner.dispatchEvent(new MessageEvent("message", {data}));
          waiting.forEach(this.postMessage);
        };
        script.src = new URL(url, location.href);
        inner.document.body.append(script);
      };
      this.postMessage = data => waiting.push(data);
      document.documentElement.append(frame);
    }
    terminate() {}
  };
