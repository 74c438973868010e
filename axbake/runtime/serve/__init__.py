"""A server for a bundle's models: OpenAI's and AUTOMATIC1111's interfaces, and a page. Needs Starlette and uvicorn besides."""
