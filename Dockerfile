# wsgimaster as a container's entrypoint.
#
#   docker build -t wsgimaster .
#   docker run --rm -p 127.0.0.1:8080:8080 wsgimaster                         the demo application
#   docker run --rm -p 127.0.0.1:8080:8080 -v "$PWD:/app" wsgimaster app.ini  yours (http-socket = :8080)
#
# tools/check_dockerfile runs these steps where there is no Docker engine. It knows the instructions that are used
# here and stops at any other.

# The suite is named so that the compiler and the C library change when somebody decides it.
FROM python:3.13-slim-trixie AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev
WORKDIR /build
COPY pyproject.toml setup.py README.md LICENSE ./
COPY src ./src
# With the dependencies' wheels: the second stage needs neither a compiler nor the network.
RUN pip wheel --no-cache-dir --wheel-dir /wheels .

FROM python:3.13-slim-trixie
# Mounted, not copied: the wheels stay out of the image.
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --find-links /wheels wsgimaster

# A number in USER, because Kubernetes can't tell that a name isn't root (runAsNonRoot); 1000, because that is whose
# files a mounted directory usually holds.
RUN useradd --uid 1000 --user-group --create-home app
WORKDIR /app
USER 1000:1000

# As PID 1 the master gets SIGTERM from `docker stop`, lets requests finish and reaps orphans; no init is needed.
# Requests get worker-reload-mercy, 60 seconds, but Docker kills after 10: `docker stop -t 70`, in Compose
# `stop_grace_period: 70s`.
EXPOSE 8080
ENTRYPOINT ["python", "-m", "wsgimaster"]
CMD ["--http-socket", ":8080", "--module", "wsgimaster.demo", "--processes", "2"]
