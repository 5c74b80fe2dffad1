//! The routes, and what holds for all of them.

use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
use serde_json::Value;

use super::access::{check_key, let_read, preflight};
use super::app::App;
use super::fields::Fields;
use super::problem::{Dialect, Kind, Problem, done};
use super::served::Served;
use super::{anthropic, body, native, ollama, openai, page};

type Shared = State<Arc<App>>;

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    let router = Router::new()
        .route("/", get(|headers: HeaderMap| async move { page::front(&headers) }))
        .route("/health", get(|State(app): Shared| async move { native::health(&app) }))
        .route("/metrics", get(|State(app): Shared| async move { answered(&app, "/metrics", native::metrics(&app)) }))
        .route("/props", get(|State(app): Shared| async move { done(&native::props(&app.served)) }))
        .route("/slots", get(|State(app): Shared| async move { done(&native::slots(&app)) }))
        .route("/tokenize", object(native::tokenize))
        .route("/detokenize", object(native::detokenize))
        .route("/apply-template", object(openai::chat::apply_template));
    let router = router
        .route("/v1/messages", asked(anthropic::create))
        .route("/v1/messages/count_tokens", object(anthropic::count_tokens))
        .route("/api/chat", asked(ollama::chat))
        .route("/api/generate", asked(ollama::generate))
        .route("/api/show", object(ollama::show))
        .route("/api/tags", get(|State(app): Shared| async move { done(&ollama::tags(&app.served)) }))
        .route("/api/ps", get(|State(app): Shared| async move { done(&ollama::ps(&app.served)) }))
        .route("/api/version", get(|| async { done(&ollama::version()) }));
    let router = ["", "/v1"].into_iter().fold(router, |router, prefix| {
        router
            .route(
                &format!("{prefix}/models"),
                get(|State(app): Shared| async move { done(&openai::models::list(&app.served)) }),
            )
            .route(
                &format!("{prefix}/models/{{*name}}"),
                get(|State(app): Shared, Path(name): Path<String>| async move {
                    answered(&app, "/v1/models", openai::models::named(&name, &app.served).map(|model| done(&model)))
                }),
            )
            .route(&format!("{prefix}/chat/completions"), asked(openai::chat::completions))
            .route(&format!("{prefix}/responses"), asked(openai::responses::create))
            .route(&format!("{prefix}/completions"), asked(openai::completions::completions))
            .route(
                &format!("{prefix}/embeddings"),
                post(|State(app): Shared| async move {
                    let message = "embeddings are not supported: this server generates texts only";
                    answered(&app, "/v1/embeddings", Err(Problem::new(Kind::Unsupported, message)))
                }),
            )
    });
    router
        .fallback(|State(app): Shared, request: Request| async move {
            let path = request.uri().path().to_owned();
            body::discard(request).await;
            let message = format!("there is no route {path}; docs/serving.md lists those that there are");
            answered(&app, &path, Err(Problem::new(Kind::NotFound, message)))
        })
        .method_not_allowed_fallback(|State(app): Shared, request: Request| async move {
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            body::discard(request).await;
            let message = format!("{path} does not take {method}");
            answered(&app, &path, Err(Problem::new(Kind::Method, message)))
        })
        .layer(from_fn_with_state(app.clone(), around))
        .with_state(app)
}

/// What holds for every request: keys, and what browsers ask.
async fn around(State(app): Shared, request: Request, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let path = request.uri().path().to_owned();
    let mut response = match preflight(request.method(), request.headers()) {
        Some(response) => response,
        None => match check_key(&app, &path, request.headers()) {
            Ok(()) => next.run(request).await,
            Err(problem) => answered(&app, &path, Err(problem)),
        },
    };
    let_read(&app, origin.as_ref(), &mut response);
    response
}

/// The response, in the words of the path's API where there is a problem.
fn answered(app: &App, path: &str, result: Result<Response, Problem>) -> Response {
    result.unwrap_or_else(|problem| {
        app.metrics.problems.inc();
        problem.response(Dialect::of(path))
    })
}

/// A route that takes an object and answers with a response of its own.
fn asked<F, W>(handler: F) -> MethodRouter<Arc<App>>
where
    F: Fn(Arc<App>, Fields) -> W + Clone + Send + Sync + 'static,
    W: Future<Output = Result<Response, Problem>> + Send,
{
    post(move |State(app): Shared, request: Request| async move {
        let path = request.uri().path().to_owned();
        let result = match body::fields(request).await {
            Ok(fields) => handler(app.clone(), fields).await,
            Err(problem) => Err(problem),
        };
        answered(&app, &path, result)
    })
}

/// A route that takes an object and answers with one, of the model alone.
fn object<F>(handler: F) -> MethodRouter<Arc<App>>
where
    F: Fn(&mut Fields, &Served) -> Result<Value, Problem> + Copy + Send + Sync + 'static,
{
    asked(move |app, mut fields| async move {
        // Long texts take a while.
        let work = tokio::task::spawn_blocking(move || handler(&mut fields, &app.served));
        let object = work.await.map_err(|error| Problem::fault(error.to_string()))??;
        Ok(done(&object))
    })
}
