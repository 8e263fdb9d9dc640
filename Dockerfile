# One image for every Plumbline process; docker-compose.yml names the commands.

FROM node:24-slim AS frontend
WORKDIR /app
COPY package.json package-lock.json ./
RUN npm ci --omit=dev --ignore-scripts --no-audit --no-fund

FROM python:3.12-slim
RUN useradd --uid 10001 --create-home plumbline \
    && install --directory --owner=plumbline --group=plumbline --mode=0700 /data
WORKDIR /app
COPY requirements.txt ./
RUN pip install --no-cache-dir --requirement requirements.txt
COPY --from=frontend /app/node_modules node_modules
COPY . .
ENV PLUMBLINE_HOME=/data HF_HOME=/data/huggingface HOST=0.0.0.0 PORT=8000 PYTHONUNBUFFERED=1
USER 10001
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=10s --start-period=60s CMD ["python", "-m", "config.ready", "web"]
CMD ["gunicorn", "--config", "config/gunicorn.py"]
