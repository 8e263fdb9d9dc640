// Time on task: seconds in view in which the annotator gave a sign of life every now and then.

const IDLE_MS = 30_000; // reading needs no hand on the mouse, but nobody reads that long without scrolling

export class Clock {
  constructor(before = 0) {
    this.total = before * 1000;
    this.since = null; // start of the stretch under way
    this.lastSign = 0;
    if (!document.hidden) this.sign();
  }

  sign() {
    const now = performance.now();
    if (this.since !== null && now - this.lastSign > IDLE_MS) this.pause();
    this.since ??= now;
    this.lastSign = now;
  }

  pause() {
    this.total = this.seconds * 1000;
    this.since = null;
  }

  get seconds() {
    if (this.since === null) return this.total / 1000;
    const end = Math.min(performance.now(), this.lastSign + IDLE_MS);
    return (this.total + end - this.since) / 1000;
  }
}
