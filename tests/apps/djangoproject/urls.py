from django.urls import path

from djangoproject import views

urlpatterns = [
    path("", views.front_page),
    path("visits", views.visits),
    path("form", views.form),
    path("upload", views.upload),
    path("static/<str:name>", views.static_file),
    path("stream", views.stream),
    path("browser", views.browser_page),
    path("events", views.events),
    path("seen/<int:number>", views.seen),
    path("found", views.found),
    path("error", views.error),
    path("where/<path:rest>", views.where),
]
