"""A Django project as small as one can be that still has what most have: admin, users, sessions, a template.

What counts is the memory that a worker keeps for it, so there is no database behind it.
"""

from pathlib import Path

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.urls import path

settings.configure(
    SECRET_KEY="only for measuring",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    BASE_DIR=Path(__file__).parent,
    INSTALLED_APPS=[
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "django.contrib.sessions",
        "django.contrib.staticfiles",
    ],
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
    MESSAGE_STORAGE="django.contrib.messages.storage.cookie.CookieStorage",
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
)
django.setup()

PAGE = engines["django"].from_string(
    "<html><body>{% for number in numbers %}<p>{{ number }}: {{ agent }}</p>{% endfor %}</body></html>"
)


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(PAGE.render({"numbers": range(20), "agent": request.headers.get("User-Agent", "")}))


urlpatterns = [path("", page), path("<path:name>", lambda request, name: page(request))]
application = get_wsgi_application()
