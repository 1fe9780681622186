import hashlib

import browser
from django.conf import settings
from django.http import FileResponse, Http404, HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import render


def front_page(request):
    return HttpResponse("Django is here")


def visits(request):
    request.session["visits"] = request.session.get("visits", 0) + 1
    return JsonResponse({"visits": request.session["visits"]})


def form(request):
    if request.method == "POST":
        return HttpResponse(f"Hello, {request.POST['name']}")
    return render(request, "form.html")


def upload(request):
    """The uploaded file's size and hash; above 2.5 MB Django keeps it in a temporary file."""
    file = request.FILES["file"]
    digest = hashlib.sha256()
    for chunk in file.chunks():
        digest.update(chunk)
    about = {"name": file.name, "size": file.size, "sha256": digest.hexdigest(), "note": request.POST["note"]}
    return JsonResponse(about)


def static_file(request, name):
    path = settings.BASE_DIR / name
    if not path.is_file():
        raise Http404
    return FileResponse(path.open("rb"))  # through wsgi.file_wrapper


def stream(request):
    return StreamingHttpResponse((f"line {number}\n" for number in range(1000)), content_type="text/plain")


def browser_page(request):
    return HttpResponse(browser.PAGE.read_text())


def events(request):
    return StreamingHttpResponse(browser.events(), content_type="text/event-stream")


def seen(request, number):
    browser.note(f"event-{number}")
    return HttpResponse()


def found(request):
    browser.note("found", request.body)
    return HttpResponse()


def error(request):
    raise RuntimeError("a view failed")


def where(request, rest):
    return JsonResponse({"path": request.path, "rest": rest, "uri": request.build_absolute_uri()})
