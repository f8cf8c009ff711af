"""The page in a real browser: every view, live, in the dark, large and narrow.

EDL_SCREENSHOTS=docs/images in the environment writes the pictures of the documentation.
"""

import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from page_scripts import CONTRASTS, SCROLL_LIST, WATCH_FRAMES
from page_server import P
from page_tab import Shown, picture

from checkpoints import TrainStatus, pin, save_checkpoint
from edl_collective.coord.records import DrainRecord, NodeRecord, decode, encode
from jobserver.checkpoint_looks import KEEP_S

pytest_plugins = ["page_fixtures"]
pytestmark = pytest.mark.integration


def test_jobs_with_their_phase_queue_and_reason(shown: Shown) -> None:
    page = shown.view("jobs", "[data-key=bert] [data-kind=wait]")
    page.wait("document.querySelector('[data-key=resnet50] [data-kind=good]')")
    page.wait("document.querySelector('[data-key=bert]').textContent.includes('56 of them are missing')")
    assert "no. 1" in page.text("[data-key=bert]")
    assert "412.5" in page.text("[data-key=resnet50]")
    assert "2 jobs that have not ended" in page.text(".sum")
    picture(page, "jobs", (1200, 320))


def test_a_job_with_its_history_workers_checkpoints_and_log(shown: Shown) -> None:
    page = shown.view("jobs/resnet50", "[data-key=w1]")
    labels = page.wait(
        "(() => { const all = [...document.querySelectorAll('figure:not([hidden]) svg')]"
        ".map((svg) => svg.getAttribute('aria-label')); return all.length === 5 && all; })()"
    )
    assert [label.partition(":")[0] for label in labels] == [
        "World size over time",
        "Throughput over time",
        "Pauses over time",
        "Loss over epochs",
        "Accuracy over epochs",
    ]
    assert "last 2 workers, between 1 and 4" in labels[0]
    assert "between 0.16 and 0.22" in labels[2]
    page.wait("document.querySelector('pre.log').textContent === 'epoch 0\\nepoch 1\\n'")
    shown.server.logs.text += b"epoch 2\n"
    page.wait("document.querySelector('pre.log').textContent.endsWith('epoch 2\\n')")
    assert page.run("document.querySelectorAll('[aria-label=Checkpoints] tbody tr').length") == 8
    assert "train 8" in page.run("document.querySelector('.goodput [role=img]').getAttribute('aria-label')")
    page.click("button", "epochs")
    page.wait(
        "document.querySelector('[data-chart=Pauses] svg').getAttribute('aria-label').startsWith('Pauses over epochs')"
    )
    page.click("button", "time")
    picture(page, "job", (1200, 1150))


def test_checkpoints_with_their_validity_as_the_server_sees_them(shown: Shown, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shown.server.app.state.checkpoint_looks._limit_s = 60.0  # on a machine that has much else to do
    page = shown.view("jobs/resnet50", "[data-key=w1]")
    page.wait("document.querySelector('[aria-label=Checkpoints] [role=status]').textContent.includes('--checkpoint')")
    shown.server.submit("saves", checkpoint_url=str(folder))
    shown.server.event("saves", "checkpoint", "saved epoch 0 in 0.21 s", epoch=0, seconds=0.21)
    page = shown.view("jobs/saves", "[aria-label=Checkpoints]")
    page.wait("document.querySelector('[aria-label=Checkpoints] [role=status]').textContent.includes('sees none')")
    for epoch in range(3):
        save_checkpoint(str(folder), TrainStatus(epoch_no=epoch), state={"model": {"weight": torch.ones(1000)}})
    newest, middle, _ = sorted(folder.glob("ckpt-*"), reverse=True)
    next(newest.glob("model-*")).unlink()
    pin(str(folder), middle.name)
    time.sleep(KEEP_S)  # until then the answer is given again
    shown.server.event("saves", "checkpoint", "saved epoch 2 in 0.21 s", epoch=2, seconds=0.21)
    seen = "[aria-label='Checkpoints in the folder'] [data-key={}]"
    page.wait(f"document.querySelector({json.dumps(seen.format(newest.name))})")
    text = page.text(seen.format(newest.name))
    assert "damaged" in text
    assert "shard model-00000-of-00001.safetensors is missing" in text
    text = page.text(seen.format(middle.name))
    assert [word in text for word in ("valid", "pinned", "KB", " s")] == [True] * 4
    assert "which took" in page.text("[aria-label=Checkpoints] [role=status]")
    if os.environ.get("EDL_SCREENSHOTS"):
        page.run("document.querySelector('[aria-label=Checkpoints]').scrollIntoView()")
        picture(page, "checkpoints", (1200, 420))
    newest.rename(folder / "elsewhere")
    time.sleep(KEEP_S)
    page.click("[aria-label=Checkpoints] button", "Look again")
    page.wait(f"!document.querySelector({json.dumps(seen.format(newest.name))})")


def test_the_goodput_bar_shows_what_it_is_told(shown: Shown) -> None:
    page = shown.view("jobs/resnet50", "[data-key=w1]")
    bar = page.run("""import("/page/goodput.js").then(({ goodput }) => {
        const one = goodput();
        one.update({ train: 90, re_form: 6, teacher: 3, nonsense: "x", pending: 0, other: 1 });
        return [one.node.hidden, one.node.querySelector("[role=img]").getAttribute("aria-label"),
                [...one.node.querySelectorAll(".bar span")].map((part) => part.style.flexGrow)];
    })""")
    assert bar == [False, "train 90 %, teacher wait 3.0 %, re-form 6.0 %, other 1.0 %", ["0.9", "0.03", "0.06", "0.01"]]


def test_a_worker_that_joins_is_shown_at_once(shown: Shown) -> None:
    page = shown.view("jobs/resnet50", "[data-key=w1]")
    latencies_ms = []
    for number in range(2, 7):
        seen = f"""new Promise((found) => {{ const look = () => document.querySelector('[data-key=w{number}]')
            ? found(performance.timeOrigin + performance.now()) : requestAnimationFrame(look); look(); }})"""
        page.run(f"window.seen = {seen}; 0")
        time.sleep(0.25)  # a change in the rest after another one is told with the next
        began_ms = time.time() * 1000
        shown.server.worker("resnet50", number, "node-b")
        latencies_ms.append(page.run("window.seen") - began_ms)
    print(f"a worker is shown after {statistics.median(latencies_ms):.0f} ms, median of {len(latencies_ms)}")
    assert statistics.median(latencies_ms) < 5000


def test_events_come_as_they_happen_and_once(shown: Shown) -> None:
    page = shown.view("jobs/resnet50", "[aria-label=Events] tbody tr")
    for number in range(3):
        shown.server.event("resnet50", "worker", f"something {number}")
        page.wait(f"document.querySelector('[aria-label=Events] tbody tr').textContent.includes('something {number}')")
    assert (
        page.run(
            "[...document.querySelectorAll('[aria-label=Events] tbody tr')]"
            ".filter((row) => row.textContent.includes('something')).length"
        )
        == 3
    )


def test_nodes_and_slots_can_be_found_and_drained_after_a_question(shown: Shown) -> None:
    page = shown.view("nodes", ".slot.taken")
    assert page.text("[data-node=node-a]").startswith("node-a")
    assert "zone=east" in page.text("[data-node=node-a]")
    page.click("[data-node=node-b] button", "Drain")
    assert "takes no others" in page.text("dialog")
    page.click("dialog button", "Cancel")
    assert shown.server.store.get(P.drain("node-b")) is None
    page.click("[data-node=node-b] button", "Drain")
    page.run("document.querySelector('dialog input').value = '30'")
    page.click("dialog button.primary")
    page.wait("document.querySelector('[data-node=node-b] .badge')?.textContent === 'drains'")
    found = shown.server.store.get(P.drain("node-b"))
    assert found is not None
    assert decode(found.data, DrainRecord).deadline_s == 30
    page.click("[data-node=node-b] button", "Undrain")
    page.click("dialog button.primary")
    page.wait("!document.querySelector('[data-node=node-b] .badge')")
    page.run("const f = document.getElementById('filter'); f.value = 'zone=west'; f.dispatchEvent(new Event('input'))")
    page.wait("document.querySelectorAll('.node').length === 1")
    assert page.run("document.querySelector('.node').dataset.node") == "node-b"


def test_what_is_wrong_with_a_node_and_that_it_is_over(shown: Shown) -> None:
    shown.server.node("node-c", slots=3, unhealthy="GPU 2: no answer within 120 s")
    page = shown.view("nodes", "[aria-label='Events of nodes'] tbody tr")
    seen = "document.querySelector('[aria-label=\\'Events of nodes\\'] tbody tr').textContent.includes"
    page.wait(f"{seen}('node node-c offers 3 slots, fewer than it has: GPU 2: no answer within 120 s')")
    shown.server.node("node-c", slots=4)
    page.wait(f"{seen}('node node-c is well again and offers 4 slots')")


def test_a_cordoned_node_is_shown_and_can_be_uncordoned(shown: Shown) -> None:
    order = encode(DrainRecord(node="node-a", cordon=True))
    shown.server.store.create(P.drain("node-a"), order)
    page = shown.view("nodes", "[data-node=node-a] .badge")
    page.wait("document.querySelector('[data-node=node-a] .badge')?.textContent === 'cordoned'")
    page.click("[data-node=node-a] button", "Uncordon")
    page.click("dialog button.primary")
    page.wait("!document.querySelector('[data-node=node-a] .badge')")
    assert shown.server.store.get(P.drain("node-a")) is None


def test_a_job_is_scaled_and_stopped_after_a_question(shown: Shown) -> None:
    page = shown.view("jobs/resnet50", "[data-key=w1]")
    page.click("button", "Scale")
    page.run("document.querySelector('dialog input').value = '3'")
    page.click("dialog button.primary")
    page.wait("!document.querySelector('dialog').open")
    assert shown.spec("resnet50").np == 3
    page.click("button", "Scale")
    page.run("const i = document.querySelector('dialog input'); i.removeAttribute('max'); i.value = '99'")
    page.click("dialog button.primary")
    page.wait("document.querySelector('.refusal').textContent.includes('np is 99: it must be between')")
    page.click("dialog button", "Cancel")
    page.errors.clear()  # the browser reports the refusal
    page.click("button.danger", "Stop")
    page.click("dialog button", "Cancel")
    assert not shown.spec("resnet50").stopped
    page.click("button.danger", "Stop")
    page.click("dialog button.primary")
    page.wait("document.querySelector('button.danger').hidden")
    assert shown.spec("resnet50").stopped


def test_teachers_and_students_with_rates_and_starvation(shown: Shown) -> None:
    server = shown.server
    for number, rate in enumerate((880.0, 910.0)):
        values = {"answered_rate": 0.8 * rate, "latency_p50_s": 0.011, "latency_p99_s": 0.031, "queue": number}
        server.teacher("resnet", f"teacher-{number}", **values)
    server.student("resnet", "student-0", demand=700.0, rate=690.0, starved=0.01, teachers=("teacher-0",))
    server.student(
        "resnet", "student-1", demand=900.0, rate=640.0, starved=0.29, starved_s=41.0, waiting_for="no teacher"
    )
    page = shown.view("services", "[data-key=resnet]")
    assert "1,600" in page.text("[data-key=resnet]")
    page = shown.view("services/resnet", "[data-key=student-1] [data-kind=bad]")
    assert "29 %" in page.text("[data-key=student-1]")
    picture(page, "teachers", (1200, 520))
    server.teacher("resnet", "teacher-2", answered_rate=1.0)
    page.wait("document.querySelector('[data-key=teacher-2]')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_the_light_and_in_the_dark(shown: Shown, scheme: str) -> None:
    shown.page.prefer(scheme)
    for view, until in (("jobs", "[data-key=bert]"), ("jobs/resnet50", "[data-key=w1]"), ("nodes", ".node")):
        page = shown.view(view, until)
        contrasts = page.run(CONTRASTS)
        assert len(contrasts) > 10
        assert contrasts[0][0] >= 4.5, contrasts[0]
    ground = page.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(ground) < 60) == (scheme == "dark")
    if scheme == "dark":
        picture(shown.view("jobs/resnet50", "[data-key=w1]"), "dark", (1200, 700))


def test_every_control_has_a_name_and_the_keyboard_reaches_them(shown: Shown) -> None:
    roles = {"button", "link", "textbox", "searchbox", "combobox", "checkbox", "image", "figure", "region", "listitem"}
    for view, until in (("jobs", "[data-key=bert]"), ("jobs/resnet50", "[data-key=w1]"), ("nodes", ".node")):
        page = shown.view(view, until)
        tree = page.send("Accessibility.getFullAXTree")["nodes"]
        named = [
            node for node in tree if not node["ignored"] and node["role"]["value"] in roles - {"listitem", "figure"}
        ]
        assert len(named) > 4
        assert [node["role"] for node in named if not node.get("name", {}).get("value")] == []
    page.run("document.body.focus()")
    page.send("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9)
    page.wait("document.activeElement !== document.body")


def test_nothing_is_cut_off_on_a_telephone(shown: Shown) -> None:
    shown.page.resize(360, 740)
    for view, until in (("jobs", "[data-key=bert]"), ("jobs/resnet50", "[data-key=w1]"), ("nodes", ".node")):
        page = shown.view(view, until)
        assert page.run("document.documentElement.scrollWidth") <= 360, view
        if view == "jobs/resnet50":
            picture(page, "narrow", (360, 740))


def test_the_map_has_its_width_from_the_first_node_on(shown: Shown) -> None:
    shown.page.resize(360, 740)
    shown.server.without_jobs_and_nodes()
    page = shown.view("nodes", ".map[hidden]")
    page.wait("document.querySelector('.sum').textContent.includes('0 nodes')")
    shown.server.node("node-a")
    page.wait("document.querySelector('[data-node=node-a]')")
    assert page.run("document.querySelector('.map canvas').clientWidth <= document.querySelector('.map').clientWidth")


def test_a_thousand_nodes_are_shown_without_jank(shown: Shown) -> None:
    server = shown.server
    server.without_jobs_and_nodes()
    for number in range(1000):
        server.node(f"node-{number}", slots=8, rack=f"r{number // 40}")
    for number in range(40):
        server.submit(f"job-{number}", max_np=190, min_np=1)
    shown.page.run(WATCH_FRAMES)
    page = shown.view("nodes", "[data-node=node-3] .taken")
    page.wait("document.querySelector('.sum').textContent.includes('1,000 nodes, 8,000 slots')")
    assert 10 < page.run("document.querySelectorAll('.node').length") < 60
    picture(page, "nodes", (1200, 800))
    page.run(SCROLL_LIST)
    page.wait("document.querySelector('[data-node=node-999]')")
    last: Any = server.store.get(P.node("node-999"))
    assert decode(last.data, NodeRecord).labels == {"rack": "r24"}
    server.node("node-999", slots=8, rack="moved")
    page.wait("document.querySelector('[data-node=node-999]').textContent.includes('rack=moved')")
    longest_ms, frames = page.run("cancelAnimationFrame(ticking), [Math.max(0, ...long), frames.slice(1)]")
    print(f"longest task {longest_ms:.0f} ms, median frame {statistics.median(frames):.0f} ms of {len(frames)}")
    assert longest_ms < 1000
    assert statistics.median(frames) < 200
