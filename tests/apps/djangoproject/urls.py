from django.urls import path

from djangoproject import views

urlpatterns = [
    path("", views.front_page),
    path("visits", views.visits),
    path("form", views.form),
    path("upload", views.upload),
    path("static/<str:name>", views.static_file),
    path("stream", views.stream),
    path("error", views.error),
    path("where/<path:rest>", views.where),
]
