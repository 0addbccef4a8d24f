// A plain reverse proxy on hyper 1 and tokio with one thread: `rust-hyper HOST:PORT TARGET [h2c]`.
//
// Keeps connections to its target, passes bodies on as they come, adds X-Forwarded-For, drops the headers that
// belong to one connection. With h2c both sides are HTTP/2 without TLS, for gRPC; trailers pass.

use std::net::SocketAddr;

use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderName, HeaderValue, CONNECTION, TRANSFER_ENCODING, UPGRADE};
use hyper::service::service_fn;
use hyper::{Request, Response, Uri, Version};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

const FORWARDED: HeaderName = HeaderName::from_static("x-forwarded-for");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

fn without_hops(headers: &mut HeaderMap) {
    for name in [CONNECTION, KEEP_ALIVE, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
}

#[derive(Clone)]
struct Proxy {
    client: Client<HttpConnector, Incoming>,
    target: String,
    version: Version,
}

impl Proxy {
    async fn forward(
        self,
        mut request: Request<Incoming>,
        from: HeaderValue,
    ) -> Result<Response<Incoming>, Error> {
        let path = request
            .uri()
            .path_and_query()
            .map_or("/", |path| path.as_str());
        let uri: Uri = format!("http://{}{path}", self.target)
            .parse()
            .expect("a path that was parsed before");
        *request.uri_mut() = uri;
        *request.version_mut() = self.version;
        without_hops(request.headers_mut());
        request.headers_mut().append(FORWARDED, from);
        let mut answer = self.client.request(request).await?;
        without_hops(answer.headers_mut());
        Ok(answer)
    }
}

async fn serve(stream: TcpStream, from: SocketAddr, proxy: Proxy) {
    let address =
        HeaderValue::try_from(from.ip().to_string()).expect("an address is a header value");
    let h2c = proxy.version == Version::HTTP_2;
    let service = service_fn(move |request| proxy.clone().forward(request, address.clone()));
    let io = TokioIo::new(stream);
    // A client or the target went away: the connection ends, which is all that can be said to either.
    let _ = if h2c {
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(io, service)
            .await
    } else {
        hyper::server::conn::http1::Builder::new()
            .serve_connection(io, service)
            .await
    };
}

async fn run(listen: String, target: String, h2c: bool) -> std::io::Result<()> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new())
        .http2_only(h2c)
        .build(connector);
    let version = if h2c {
        Version::HTTP_2
    } else {
        Version::HTTP_11
    };
    let proxy = Proxy {
        client,
        target,
        version,
    };
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (stream, from) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(serve(stream, from, proxy.clone()));
    }
}

fn main() -> std::io::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [listen, target, rest @ ..] = words.as_slice() else {
        eprintln!("rust-hyper HOST:PORT TARGET [h2c]");
        std::process::exit(2);
    };
    let h2c = rest.first().is_some_and(|word| word == "h2c");
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(run(listen.clone(), target.clone(), h2c))
}
