# %% [markdown]
# # Serve a cascade
#
# A calibrated cascade becomes a folder of ONNX files that runs without PyTorch, a web service answers from it within
# each request's deadline, and a client asks it over a real socket. This page needs
# `pip install "superweight-ensembles[export]" fastapi uvicorn httpx`.

# %%
import io
import sys
import threading
import time
from statistics import median

import httpx
import numpy as np
import torch
import uvicorn
from fastapi import Body, FastAPI, HTTPException, Query
from PIL import Image

import superweight_ensembles as swe

torch.manual_seed(0)

# %% [markdown]
# ## Train, calibrate, export
#
# As in the first tutorial, in short. With `images=` the folder knows how files become inputs, and what the classes are
# called. Each ONNX file is compared with PyTorch before it is put in place.

# %%
data = swe.load_data("digits", validation_fraction=0.2)
members = {
    "narrow": swe.wide_resnet(10, 0.5, num_classes=10, in_channels=1),
    "wide": swe.wide_resnet(10, 1, num_classes=10, in_channels=1),
}
ensemble = swe.SuperWeightEnsemble(members, budget=0.83)
swe.train(ensemble, data, swe.TrainConfig(epochs=3, batch_size=32, schedule="one_cycle", num_threads=1))
predictor = swe.AnytimePredictor(ensemble, input_shape=(1, 8, 8))
predictor.calibrate(data.loader("validation", 64), flops=0.6)
swe.export_cascade(predictor.modules, predictor.policy, "cascade", input_shape=(1, 8, 8), images=predictor.images)

# %% [markdown]
# ## Load it where it serves
#
# The folder brings its own loader, which needs numpy and onnxruntime alone. On the machine that serves, the folder is
# all that is copied; here it is loaded beside PyTorch for want of a second machine.

# %%
sys.path.append("cascade")
from onnx_cascade import OnnxCascade  # noqa: E402 - the loader lies in the folder that was just written

cascade = OnnxCascade("cascade")
print(cascade.members, cascade.input_shape, cascade.classes)

# %% [markdown]
# To keep a deadline, the service must know ahead how long each member takes on this machine. The stream runs member
# after member, so that the time between two steps is that of one member. The median over some rounds is little moved by
# the first calls, which are slow.


# %%
def time_members(rounds=20):
    blank, taken = np.zeros((1, *cascade.input_shape), np.float32), {name: [] for name in cascade.members}
    for _ in range(rounds):
        before = time.perf_counter()
        for step in cascade.stream(blank):
            taken[step.member].append(time.perf_counter() - before)
            before = time.perf_counter()
    return [median(taken[name]) for name in cascade.members]


seconds = time_members()
print({name: f"{1e3 * one:.2f} ms" for name, one in zip(cascade.members, seconds)})

# %% [markdown]
# ## The service
#
# Without a deadline the cascade itself decides how many members an image needs. With one, the stream goes on while the
# next member would still end in time; the first always runs. The clock starts before the picture is read.
#
# FastAPI checks the types: a deadline that is no positive number is answered with 422. A body that is no picture makes
# the loader raise a `ValueError`; that is the client's mistake, so it is answered with 400.

# %%
app = FastAPI()


@app.post("/predict")
def predict(picture: bytes = Body(media_type="image/png"), deadline_ms: float | None = Query(None, gt=0, le=60_000)):
    start = time.perf_counter()
    try:
        images = cascade.read(io.BytesIO(picture))
    except ValueError:
        raise HTTPException(400, "the body is no picture that can be read: send a PNG or JPEG file") from None
    if deadline_ms is None:
        answer = cascade(images)
        probabilities, used = answer.probabilities[0], int(answer.members_used[0])
    else:
        end = start + deadline_ms / 1e3
        for used, step in enumerate(cascade.stream(images), 1):
            probabilities = step.probabilities[0]
            if used == len(seconds) or time.perf_counter() + seconds[used] > end:
                break
    best = int(probabilities.argmax())
    return {"class": cascade.classes[best], "probability": round(float(probabilities[best]), 3), "members_used": used}


# %% [markdown]
# uvicorn serves it from a thread, on a free port. In production the service is a program of its own:
# `uvicorn service:app --workers 2`.

# %%
server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
thread = threading.Thread(target=server.run)
thread.start()
while not server.started and thread.is_alive():
    time.sleep(0.01)
host, port = server.servers[0].sockets[0].getsockname()

# %% [markdown]
# ## A client
#
# The client sends PNG files. The picture is one of which the cascade is not sure after the first member, so that you
# see what a deadline does: a short one gets the first member's answer, a long one the answer of all members.

# %%
client = httpx.Client(base_url=f"http://{host}:{port}", timeout=60)
images, labels = next(iter(data.loader("test", 1000)))
hard = int(cascade(images.contiguous().numpy()).members_used.argmax())


def ask(picture, **query):
    reply = client.post("/predict", content=picture, params=query, headers={"content-type": "image/png"})
    return reply.status_code, reply.json()


file = io.BytesIO()
Image.fromarray(data.test.images[hard, 0].numpy()).save(file, "PNG")
short, long, free = (ask(file.getvalue(), **query) for query in ({"deadline_ms": 0.001}, {"deadline_ms": 30_000}, {}))
print("the picture shows", labels[hard].item())
print("short deadline:", short, "\nlong deadline: ", long, "\nno deadline:   ", free)
assert short[1]["members_used"] == 1 and long[1]["members_used"] == 2 and free[1]["members_used"] == 2

# %% [markdown]
# Bad requests get an answer that says what is wrong, and the service goes on.

# %%
for picture, query in ((file.getvalue(), {"deadline_ms": -5}), (file.getvalue(), {"deadline_ms": "soon"}),
                       (b"no picture", {})):  # fmt: skip
    status, body = ask(picture, **query)
    print(status, body["detail"] if isinstance(body["detail"], str) else body["detail"][0]["msg"])
    assert status in (400, 422)
assert ask(file.getvalue())[0] == 200

# %% [markdown]
# ## Shut down
#
# The server ends its requests and its thread; nothing is left running.

# %%
client.close()
server.should_exit = True
thread.join(timeout=30)
assert not thread.is_alive()
print("stopped")
