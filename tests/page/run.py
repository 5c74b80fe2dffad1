#!/usr/bin/env python3
"""The page at `/` in a headless browser: with the demo model behind it, and with a server that says what is written down here.

Playwright lies in a virtual environment in .cache/page. The browser is the one that CHROMIUM names, else one that is installed, else Playwright's own,
which is fetched. BLESS=1 writes the screenshot of docs/serving.md.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".cache" / "page"
PLAYWRIGHT = "playwright==1.65.2"
BROWSERS = ["chromium", "chromium-headless-shell", "chromium-browser", "google-chrome"]
KEY = "sesame"


def prepare():
    """Runs again within the virtual environment."""
    python = VENV / "bin" / "python"
    if Path(sys.prefix).resolve() == VENV.resolve():
        return
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    have = subprocess.run([python, "-c", "import playwright"], capture_output=True)
    if have.returncode != 0:
        subprocess.run([python, "-m", "pip", "install", "--quiet", PLAYWRIGHT], check=True)
    os.execv(python, [python, __file__])


prepare()
from playwright.sync_api import expect, sync_playwright  # noqa: E402


def browser_path():
    named = os.environ.get("CHROMIUM")
    found = [named] if named else [path for name in BROWSERS if (path := shutil.which(name))]
    if found:
        return found[0]
    done = subprocess.run([VENV / "bin" / "playwright", "install", "chromium-headless-shell"])
    if done.returncode != 0:
        sys.exit("page: there is no browser, and Playwright's cannot be fetched: install chromium, or name one in CHROMIUM")
    return None


class Scripted(BaseHTTPRequestHandler):
    """Says what the last message asks for."""

    protocol_version = "HTTP/1.1"
    asked = []
    wants_key = False

    def log_message(self, *_):
        pass

    def tell(self, status, kind, body):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def object(self, status, value):
        self.tell(status, "application/json", json.dumps(value).encode())

    def refused(self):
        if Scripted.wants_key and self.headers.get("Authorization") != f"Bearer {KEY}":
            self.object(401, {"error": {"message": "no key was given"}})
            return True
        return False

    def do_GET(self):
        if self.path == "/":
            self.tell(200, "text/html; charset=utf-8", (ROOT / "runtime/src/serve/page.html").read_bytes())
        elif self.path == "/health":
            self.object(200, {"status": "ok"})
        elif self.path == "/v1/models" and not self.refused():
            self.object(200, {"data": [{"id": "scripted"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.refused():
            return
        Scripted.asked.append(body)
        said = body["messages"][-1]["content"]
        if said == "refuse":
            self.object(400, {"error": {"message": "`temperature` is odd"}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for delta in self.deltas(said):
                self.event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
            if said == "break":
                self.event({"error": {"message": "the logits are not finite"}})
            else:
                self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
                timings = {"predicted_per_second": 41.5, "prompt_ms": 12.3}
                self.event({"choices": [], "usage": {"completion_tokens": 7}, "timings": timings, "warnings": []})
            self.piece(b"data: [DONE]\n\n")
            self.piece(b"")
        except OSError:
            Scripted.asked.append("left")

    def deltas(self, said):
        if said == "think":
            yield {"reasoning_content": "Let me "}
            yield {"reasoning_content": "see."}
            time.sleep(0.5)
            yield {"content": "Seen."}
        elif said == "slow":
            for number in range(200):
                yield {"content": f"{number} "}
                time.sleep(0.05)
        elif said == "code":
            yield {"content": "Use `one` of **these**:\n```rust\nfn main() {\n    let x = 1;\n}\n```\nThat is <all>."}
        elif said == "markup":
            yield {"content": "<img src=x onerror=\"document.title='owned'\"> `<b>` ```\n<script>document.title='owned'</script>"}
        else:
            yield {"content": f"You said: {said}"}

    def event(self, value):
        self.piece(f"data: {json.dumps(value)}\n\n".encode())

    def piece(self, data):
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


CONTRAST = """
() => {
  const parse = (text) => text.match(/[0-9.]+/g).slice(0, 3).map(Number);
  const luminance = (color) => {
    const [r, g, b] = parse(color).map((c) => c / 255).map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const back = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (!/^rgba.*, 0\\)$/.test(color)) return color;
    }
  };
  const low = [];
  for (const element of document.querySelectorAll("h1, h1 small, h2, p, button, .said, .foot, summary, kbd, label, small, details div")) {
    if (!element.offsetParent || !element.textContent.trim()) continue;
    const pair = [luminance(getComputedStyle(element).color), luminance(back(element))].sort((a, b) => b - a);
    const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (contrast < 4.5) low.push(`${element.tagName} ${element.className} ${contrast.toFixed(2)}`);
  }
  return low;
}
"""

NAMELESS = """
() => [...document.querySelectorAll("button, input, select, textarea")]
  .filter((element) => !(element.textContent.trim() && element.tagName === "BUTTON") && !element.labels?.length && !element.ariaLabel)
  .map((element) => element.outerHTML)
"""


def say(page, text):
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def last(page):
    return page.locator("article").last


def done(page):
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=60_000)


def check_scripted(browser, base):
    page = browser.new_page()
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith((base, "data:")) or faults.append(asked.url))
    page.goto(base)
    expect(page).to_have_title("scripted · fuserun")

    # Thinking stands apart, dimmed, and is closed when the answer begins.
    say(page, "think")
    thought = last(page).locator("details.thought")
    expect(thought).to_have_attribute("open", "")
    expect(thought.locator("div")).to_have_text("Let me see.")
    expect(last(page).locator(".said")).to_have_text("Seen.")
    done(page)
    expect(thought).not_to_have_attribute("open", "")
    colors = page.evaluate("() => ['.thought', '.said'].map((name) => getComputedStyle(document.querySelector(name)).color)")
    assert colors[0] != colors[1], colors
    expect(last(page).locator(".foot")).to_contain_text("7 tokens · 41.5 per second · first after 12 ms")
    say(page, "again")
    done(page)
    messages = Scripted.asked[-1]["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"], messages
    assert messages[1]["reasoning_content"] == "Let me see.", messages

    # Escape stops an answer, and so does the button; the server is left.
    for stop in [lambda: page.keyboard.press("Escape"), lambda: page.get_by_role("button", name="Stop").click()]:
        say(page, "slow")
        expect(last(page).locator(".said")).to_contain_text("3 ")
        stop()
        done(page)
        expect(last(page).locator(".foot")).to_contain_text("stopped")
        length = len(last(page).locator(".said").inner_text())
        page.wait_for_timeout(300)
        assert len(last(page).locator(".said").inner_text()) == length
    assert "left" in Scripted.asked

    # Keys: a line break, the last message taken back, a new chat.
    box = page.get_by_label("Message")
    box.fill("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    done(page)
    expect(last(page).locator(".said")).to_have_text("You said: one\ntwo")
    expect(page.locator("article.user").last.locator(".said")).to_have_text("one\ntwo")
    count = page.locator("article").count()
    page.keyboard.press("ArrowUp")
    expect(box).to_have_value("one\ntwo")
    assert page.locator("article").count() == count - 2
    page.keyboard.press("Alt+n")
    expect(page.locator("article")).to_have_count(0)
    expect(box).to_be_focused()
    box.fill("")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Send")).to_be_focused()

    # Code, and markup that stays text.
    say(page, "code")
    done(page)
    expect(last(page).locator("pre code")).to_have_text("fn main() {\n    let x = 1;\n}")
    expect(last(page).locator("strong")).to_have_text("these")
    expect(last(page).locator(".said")).to_contain_text("That is <all>.")
    say(page, "markup")
    done(page)
    assert last(page).locator("img, script, b").count() == 0
    expect(page).to_have_title("scripted · fuserun")

    # What goes wrong is said.
    for word, message in [("refuse", "`temperature` is odd"), ("break", "the logits are not finite")]:
        say(page, word)
        expect(last(page).get_by_role("alert")).to_have_text(message)
    last(page).get_by_role("button", name="Again").click()
    done(page)

    # Settings reach the request, are kept, and are checked.
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("System prompt")).to_be_focused()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Tokens at most").fill("9")
    page.get_by_label("Thinking").select_option("off")
    say(page, "hello")
    done(page)
    asked = Scripted.asked[-1]
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}, asked
    assert (asked["temperature"], asked["max_tokens"]) == (0.5, 9) and "top_p" not in asked, asked
    assert asked["chat_template_kwargs"] == {"enable_thinking": False}, asked
    page.reload()
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("Temperature")).to_have_value("0.5")
    page.get_by_label("Top p").fill("7")
    before = len(Scripted.asked)
    say(page, "hello")
    page.wait_for_timeout(200)
    assert len(Scripted.asked) == before, "a value out of range is not sent"
    page.get_by_label("Top p").fill("")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Settings")).to_be_focused()

    # Light and dark, wide and narrow: legible, named, and no wider than the window.
    backs = set()
    for scheme in ["light", "dark"]:
        for width in [1200, 360]:
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": 700})
            say(page, "think")
            done(page)
            low = page.evaluate(CONTRAST)
            assert not low, (scheme, low)
            assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), (scheme, width)
        backs.add(page.evaluate("() => getComputedStyle(document.body).backgroundColor"))
    assert len(backs) == 2, backs
    nameless = page.evaluate(NAMELESS)
    assert not nameless, nameless
    assert page.get_by_role("log", name="Conversation").count() == 1

    # A key is asked for, and not kept beyond the tab.
    Scripted.wants_key = True
    page.reload()
    expect(page.get_by_role("status").first).to_have_text("wants a key")
    page.get_by_label("Key").fill(KEY)
    page.get_by_label("Key").blur()
    expect(page.locator("#model")).to_have_text("scripted")
    say(page, "hello")
    expect(last(page).locator(".said")).to_have_text("You said: hello")
    assert KEY not in page.evaluate("() => JSON.stringify(localStorage)")
    assert not faults, faults
    page.close()


def check_demo(browser, base):
    page = browser.new_page(viewport={"width": 960, "height": 620})
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: line.type == "error" and faults.append(line.text))
    page.on("request", lambda asked: asked.url.startswith((base, "data:")) or faults.append(asked.url))
    reply = page.goto(base)
    assert "default-src 'none'" in reply.headers["content-security-policy"], reply.headers
    expect(page).to_have_title("demo · fuserun")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Tokens at most").fill("24")
    page.get_by_label("Temperature").blur()
    page.keyboard.press("Escape")
    for text in ["Hast seen the white whale?", "Which way is it gone?"]:
        say(page, text)
        expect(last(page).locator(".said")).not_to_have_text("", timeout=60_000)
        done(page)
    expect(page.locator("article")).to_have_count(4)
    expect(last(page).locator(".foot")).to_contain_text("tokens")
    assert not faults, faults
    picture = ROOT / ("docs/page.png" if os.environ.get("BLESS") else ".cache/page.png")
    page.screenshot(path=picture)
    print(f"page: {picture.relative_to(ROOT)}")
    page.close()


def main():
    subprocess.run(["cargo", "build", "--quiet", "--workspace", "--bin", "fuserun"], cwd=ROOT, check=True)
    program = [ROOT / "target/debug/fuserun", "serve", "--device", "cpu", "--port", "0", "--threads", "1"]
    server = subprocess.Popen(program, stderr=subprocess.PIPE, text=True)
    scripted = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    threading.Thread(target=scripted.serve_forever, daemon=True).start()
    try:
        said = ""
        while "ready\n" not in said:
            line = server.stderr.readline()
            if not line:
                sys.exit(f"page: the server ended: {said}")
            said += line
        base = "http://" + said.split("http://")[1].split(",")[0]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=browser_path())
            check_scripted(browser, f"http://127.0.0.1:{scripted.server_address[1]}")
            check_demo(browser, base)
            browser.close()
    finally:
        server.kill()
        scripted.shutdown()
    print("page: all of it holds")


main()
