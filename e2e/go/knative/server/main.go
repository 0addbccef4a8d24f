// The user's server in the tests: one port for HTTP/1.1, h2c, gRPC and WebSocket.
//
//	any path          JSON: which pod, what arrived; ?sleep=MS waits before the head, ?stall=MS between head and body,
//	                  ?status=N answers with that status
//	/echo             the body comes back as it arrives
//	/events           server-sent events: ?n=N of them, ?every=MS apart
//	/socket           WebSocket echo
//	gRPC, any method  each message comes back; header "pod"; metadata "sleep-ms" waits before each answer
//
// OPEN_AFTER_MS makes the port open late, for tests of slow revisions.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
)

var (
	pod      = hostname()
	inFlight atomic.Int64
)

// hostname of a pod is its name; the stand-in for the kubelet says it by the environment.
func hostname() string {
	if name := os.Getenv("HOSTNAME"); name != "" {
		return name
	}
	name, _ := os.Hostname()
	return name
}

func milliseconds(text string) time.Duration {
	n, _ := strconv.Atoi(text)
	return time.Duration(n) * time.Millisecond
}

// wait until the time is over or the client is gone.
func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

func report(w http.ResponseWriter, r *http.Request, concurrent int64) {
	query := r.URL.Query()
	body, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	wait(r.Context(), milliseconds(query.Get("sleep")))
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Pod", pod)
	if code, err := strconv.Atoi(query.Get("status")); err == nil {
		w.WriteHeader(code)
	}
	if stall := milliseconds(query.Get("stall")); stall > 0 {
		_ = http.NewResponseController(w).Flush()
		wait(r.Context(), stall)
	}
	_ = json.NewEncoder(w).Encode(map[string]any{
		"pod": pod, "protocol": r.Proto, "method": r.Method, "host": r.Host, "path": r.URL.Path, "query": r.URL.RawQuery,
		"headers": r.Header, "body_bytes": body, "concurrent": concurrent, "version": os.Getenv("VERSION"),
	})
}

func echo(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	if r.ProtoMajor == 1 {
		_ = control.EnableFullDuplex()
	}
	w.Header().Set("Pod", pod)
	buffer := make([]byte, 32<<10)
	for {
		n, err := r.Body.Read(buffer)
		if n > 0 {
			if _, err := w.Write(buffer[:n]); err != nil {
				return
			}
			_ = control.Flush()
		}
		if err != nil {
			return
		}
	}
}

func events(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	n, _ := strconv.Atoi(query.Get("n"))
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Pod", pod)
	control := http.NewResponseController(w)
	for i := range n {
		if i > 0 {
			wait(r.Context(), milliseconds(query.Get("every")))
		}
		if _, err := fmt.Fprintf(w, "data: %d\n\n", i); err != nil {
			return
		}
		_ = control.Flush()
	}
}

func socket(w http.ResponseWriter, r *http.Request) {
	upgrader := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
	conn, err := upgrader.Upgrade(w, r, http.Header{"Pod": {pod}})
	if err != nil {
		return
	}
	defer conn.Close()
	for {
		kind, message, err := conn.ReadMessage()
		if err != nil {
			return
		}
		if err := conn.WriteMessage(kind, message); err != nil {
			return
		}
	}
}

// raw passes messages on as bytes, so that no service definition is needed.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

var _ encoding.CodecV2 = raw{}

func echoCalls(_ any, stream grpc.ServerStream) error {
	inFlight.Add(1)
	defer inFlight.Add(-1)
	sleep := time.Duration(0)
	if incoming, ok := metadata.FromIncomingContext(stream.Context()); ok {
		sleep = milliseconds(strings.Join(incoming.Get("sleep-ms"), ""))
	}
	if err := stream.SetHeader(metadata.Pairs("pod", pod)); err != nil {
		return err
	}
	for {
		var message []byte
		if err := stream.RecvMsg(&message); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		wait(stream.Context(), sleep)
		if err := stream.SendMsg(&message); err != nil {
			return err
		}
	}
}

func main() {
	wait(context.Background(), milliseconds(os.Getenv("OPEN_AFTER_MS")))
	port := os.Getenv("PORT")
	if port == "" {
		port = "8080"
	}
	calls := grpc.NewServer(grpc.UnknownServiceHandler(echoCalls), grpc.ForceServerCodecV2(raw{}))
	mux := http.NewServeMux()
	mux.HandleFunc("/echo", echo)
	mux.HandleFunc("/events", events)
	mux.HandleFunc("/socket", socket)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		report(w, r, inFlight.Load())
	})
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			calls.ServeHTTP(w, r)
			return
		}
		inFlight.Add(1)
		defer inFlight.Add(-1)
		mux.ServeHTTP(w, r)
	})
	server := &http.Server{Addr: ":" + port, Handler: handler, ReadHeaderTimeout: time.Minute, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() {
		<-stop
		_ = server.Shutdown(context.Background())
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		log.Fatal(err)
	}
}
