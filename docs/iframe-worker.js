// Browsers refuse workers to pages that are opened from disk, and the search of the site runs in one. On such a page a
// Worker is a hidden frame that runs the same script; everywhere else nothing is changed.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.waiting = [] // messages that came before the script had run
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.appendChild(this.frame)
      const inside = this.frame.contentWindow
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      inside.importScripts = (...urls) => Promise.all(urls.map(each => this.load(each)))
      this.load(url).then(() => {
        const waiting = this.waiting
        this.waiting = null
        waiting.forEach(data => this.postMessage(data))
      })
    }

    load(url) {
      const page = this.frame.contentDocument, script = page.createElement("script")
      script.src = new URL(url, location.href).href
      return new Promise((resolve, reject) => {
        script.onload = () => resolve()
        script.onerror = () => reject(new Error(`${url} can't be loaded`))
        page.body.appendChild(script)
      })
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data)
      else this.frame.contentWindow.dispatchEvent(new this.frame.contentWindow.MessageEvent("message", { data }))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
