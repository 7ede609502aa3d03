# The server, for several replicas behind a proxy. Not run so far: there was no engine at hand. See docs/operations.md.
FROM python:3.11-slim AS build
COPY --from=ghcr.io/astral-sh/uv:0.9 /uv /usr/local/bin/uv
WORKDIR /app
ENV UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=/opt/fedboard UV_LINK_MODE=copy
COPY pyproject.toml uv.lock README.md LICENSE ./
RUN uv sync --locked --no-dev --no-install-project --extra server --extra postgres --extra device
COPY . .
RUN uv sync --locked --no-dev --no-editable --extra server --extra postgres --extra device

FROM python:3.11-slim
RUN useradd --system --create-home --home-dir /var/lib/fedboard fedboard
COPY --from=build /opt/fedboard /opt/fedboard
ENV PATH=/opt/fedboard/bin:$PATH PYTHONUNBUFFERED=1
USER fedboard
WORKDIR /var/lib/fedboard
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
ENTRYPOINT ["fedboard", "serve", "--dir", "/var/lib/fedboard", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--insecure"]
