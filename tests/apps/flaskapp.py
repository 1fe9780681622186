"""A small Flask application; what it is asked is in the paths."""

import hashlib
from pathlib import Path

import browser
from flask import Flask, abort, jsonify, redirect, request, send_file, session, url_for

app = Flask(__name__)
app.secret_key = "only for tests"


@app.get("/")
def front_page():
    return "Flask is here"


@app.get("/visits")
def visits():
    session["visits"] = session.get("visits", 0) + 1
    return jsonify(visits=session["visits"])


@app.post("/form")
def form():
    return f"Hello, {request.form['name']}"


@app.post("/json")
def from_json():
    return jsonify(request.get_json())


@app.post("/upload")
def upload():
    file = request.files["file"]
    data = file.read()
    return jsonify(name=file.filename, size=len(data), sha256=hashlib.sha256(data).hexdigest())


@app.get("/source")
def source():
    return send_file(Path(__file__), mimetype="text/plain")


@app.get("/stream")
def stream():
    return (f"line {number}\n" for number in range(1000)), {"Content-Type": "text/plain"}


@app.get("/away")
def away():
    return redirect(url_for("front_page", _external=True))


@app.get("/teapot")
def teapot():
    abort(418)


@app.get("/browser")
def browser_page():
    return browser.PAGE.read_text()


@app.get("/events")
def events():
    return browser.events(), {"Content-Type": "text/event-stream"}


@app.get("/seen/<number>")
def seen(number):
    browser.note(f"event-{number}")
    return ""


@app.post("/found")
def found():
    browser.note("found", request.get_data())
    return ""


@app.get("/error")
def error():
    raise RuntimeError("a view failed")


@app.get("/path/<path:rest>")
def path(rest):
    return jsonify(rest=rest, args=request.args.to_dict(flat=False), root=request.script_root)
