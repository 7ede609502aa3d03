# syntax=docker/dockerfile:1
# The Fedboard server: nothing of TensorFlow, no compiler, an ordinary user.
#
# NOT BUILT YET: no Docker engine was at hand when this was written. Its steps (uv sync of the server and postgres extras from uv.lock,
# then the installed `fedboard`) were run outside a container; the file itself was not.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
ARG UV_VERSION=0.13.9
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=/opt/fedboard
RUN pip install --no-cache-dir --disable-pip-version-check uv==${UV_VERSION}
WORKDIR /build
# what others wrote, as uv.lock pins it: this layer changes with the lock only
COPY pyproject.toml uv.lock ./
RUN uv sync --locked --no-dev --extra server --extra postgres --no-install-project
COPY LICENSE README.md ./
COPY device_runtime device_runtime
COPY model model
COPY conversion conversion
COPY server server
COPY helper helper
COPY fleet fleet
COPY fedboard fedboard
RUN uv sync --locked --no-dev --extra server --extra postgres --no-editable

FROM ${PYTHON}
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin fedboard \
 && install -d -o fedboard -g fedboard -m 0700 /var/lib/fedboard
COPY --from=build /opt/fedboard /opt/fedboard
ENV PATH=/opt/fedboard/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER fedboard
EXPOSE 8000
STOPSIGNAL SIGTERM
# a server that cannot use its database or its blobs answers something else than 200
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-c", "from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:8000/readyz', timeout=4)"]
# plain HTTP: TLS ends at the proxy in front, and nothing else may reach this port
ENTRYPOINT ["fedboard", "serve", "--config", "/etc/fedboard/server.toml", "--dir", "/var/lib/fedboard", "--host", "0.0.0.0", "--port", "8000", "--insecure"]
