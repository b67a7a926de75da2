"""A real browser, driven by the DevTools protocol over a pipe: no further package is needed."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")


def find_browser() -> str | None:
    """The program of a browser, if there is one that can be driven."""
    if os.name == "nt":
        return None
    return next((found for found in map(shutil.which, BROWSERS) if found), None)


class Chromium:
    """One page of a browser without a window."""

    def __init__(self, program: str, profile: Path) -> None:
        command = [
            program,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
        ]
        command += [f"--user-data-dir={profile}", "about:blank"]
        theirs_in, self.out = os.pipe()
        self.inlet, theirs_out = os.pipe()

        def numbered_as_it_expects() -> None:
            low, high = os.dup(theirs_in), os.dup(theirs_out)
            os.dup2(low, 3)
            os.dup2(high, 4)

        self.process = subprocess.Popen(
            command,
            preexec_fn=numbered_as_it_expects,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.number, self.unread, self.session = 0, b"", None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """End the browser."""
        self.process.kill()
        self.process.wait()
        os.close(self.out)
        os.close(self.inlet)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its result; events on the way are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive(60)
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def receive(self, seconds: float) -> dict[str, Any]:
        """The next message from the browser."""
        while b"\0" not in self.unread:
            ready, _, _ = select.select([self.inlet], [], [], seconds)
            assert ready, "the browser does not answer"
            part = os.read(self.inlet, 1 << 20)
            assert part, "the browser has ended"
            self.unread += part
        raw, _, self.unread = self.unread.partition(b"\0")
        message = json.loads(raw)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, path: Path) -> None:
        """Load a file and wait until the page says that its network runs."""
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        self.wait("globalThis.demo && demo.outputs && !demo.computing")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page; of a promise, what it resolves to."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Wait until a condition holds in the page."""
        until = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < until, f"never: {condition}; {self.complaints()}"
            time.sleep(0.02)

    def settle(self) -> None:
        """Wait until what is shown is of the newest state."""
        self.wait("!demo.computing")

    def slide(self, **values: float) -> None:
        """Move sliders, as a person does."""
        for name, value in values.items():
            self.evaluate(
                f"slider = document.getElementById('slider-{name}'); slider.value = {value};"
                "slider.dispatchEvent(new Event('input'))"
            )
        self.settle()

    def draw(self, *points: tuple[float, float]) -> None:
        """Draw a stroke on the pad with the mouse: points in [0, 1]."""
        self.evaluate("document.getElementById('pad').scrollIntoView({block: 'center'})")
        box = self.evaluate(
            "(({x, y, width, height}) => ({x, y, width, height}))"
            "(document.getElementById('pad').getBoundingClientRect())"
        )
        kinds = ["mousePressed", *["mouseMoved"] * (len(points) - 1)]
        for kind, (x, y) in zip(kinds, points, strict=True):
            self.mouse(kind, box["x"] + x * box["width"], box["y"] + y * box["height"])
        self.mouse("mouseReleased", box["x"], box["y"])
        self.settle()

    def mouse(self, kind: str, x: float, y: float) -> None:
        """An event of the mouse, its left button held."""
        where = {"x": x, "y": y, "button": "left", "buttons": 1, "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type=kind, **where)

    def touch(self, *points: tuple[float, float]) -> None:
        """Draw a stroke on the pad with a finger: points in [0, 1]."""
        self.evaluate("document.getElementById('pad').scrollIntoView({block: 'center'})")
        box = self.evaluate(
            "(({x, y, width, height}) => ({x, y, width, height}))"
            "(document.getElementById('pad').getBoundingClientRect())"
        )
        for kind, (x, y) in zip(
            ["touchStart", *["touchMove"] * (len(points) - 1)], points, strict=True
        ):
            place = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[place])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.settle()

    def window(self, width: int, height: int, dark: bool = False, phone: bool = False) -> None:
        """Give the page a size and a colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """Write a picture of the page, or of what the window shows of it."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def requests(self) -> list[str]:
        """The addresses that the page asked for since it was opened."""
        sent = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def complaints(self) -> list[str]:
        """What stands in the console since the page was opened: errors and warnings."""
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self.events if event["method"] in kinds]
