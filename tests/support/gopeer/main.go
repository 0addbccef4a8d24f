// The other side of the data plane in tests, in Go: net/http and grpc-go, cleartext HTTP/2 by prior knowledge.
//
//	gopeer serve-http | serve-grpc          prints its port; echoes
//	gopeer check-http | check-grpc ADDR     calls an echo at ADDR in every way, prints "ok" or what went wrong
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// raw passes messages on as bytes.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

func listen() net.Listener {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	return listener
}

func serveHTTP() {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	server := http.Server{Protocols: protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 || r.Header.Get("K-Proxy-Request") != "activator" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		if r.URL.Path == "/wait" {
			<-r.Context().Done()
			return
		}
		w.Header().Set("Trailer", "X-Sum")
		w.Header().Set("X-Path", r.URL.Path)
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		size, _ := io.Copy(w, r.Body)
		w.Header().Set("X-Sum", fmt.Sprint(size, r.Trailer.Get("X-Own")))
	})}
	must(server.Serve(listen()))
}

func serveGRPC() {
	server := grpc.NewServer(
		grpc.ForceServerCodecV2(raw{}),
		grpc.MaxRecvMsgSize(64<<20),
		grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
			method, _ := grpc.MethodFromServerStream(stream)
			if method == "/echo/fail" {
				return status.Error(codes.NotFound, "no é here")
			}
			if method == "/echo/wait" {
				<-stream.Context().Done()
				return stream.Context().Err()
			}
			stream.SetTrailer(metadata.Pairs("x-trailing", "t"))
			for {
				var message []byte
				if err := stream.RecvMsg(&message); err == io.EOF {
					return nil
				} else if err != nil {
					return err
				}
				if err := stream.SendMsg(&message); err != nil {
					return err
				}
			}
		}),
	)
	must(server.Serve(listen()))
}

func random(size int) []byte {
	data := make([]byte, size)
	_, err := rand.Read(data)
	must(err)
	return data
}

// together runs work so many times at once.
func together(times int, work func(i int)) {
	var group sync.WaitGroup
	for i := range times {
		group.Add(1)
		go func() {
			defer group.Done()
			work(i)
		}()
	}
	group.Wait()
}

func checkHTTP(addr string) {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: &http.Transport{Protocols: protocols}}
	post := func(path string, body []byte, declared bool) {
		request, err := http.NewRequest("POST", "http://"+addr+path, bytes.NewReader(body))
		must(err)
		if !declared {
			request.ContentLength = -1
			request.Trailer = http.Header{"X-Own": {"!"}}
		}
		request.Header.Set("X-Long", strings.Repeat("v", 3000))
		response, err := client.Do(request)
		must(err)
		defer response.Body.Close()
		got, err := io.ReadAll(response.Body)
		must(err)
		want := fmt.Sprint(len(body))
		if !declared {
			want += "!"
		}
		check(response.StatusCode == 200 && response.Header.Get("X-Path") == path, "status or header", response)
		check(bytes.Equal(got, body), "body of", len(body), "came as", len(got))
		check(response.Trailer.Get("X-Sum") == want, "trailer", response.Trailer)
	}
	together(100, func(i int) { post(fmt.Sprint("/first/", i), random(i*100), i%2 == 0) })
	together(8, func(i int) { post("/large", random(3<<20), i%2 == 0) })
	for i := range 200 {
		post("/again", random(i), true)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, "GET", "http://"+addr+"/wait", nil)
	must(err)
	_, err = client.Do(request)
	check(errors.Is(err, context.DeadlineExceeded), "deadline", err)
	post("/after", []byte("x"), true)
}

func checkGRPC(addr string) {
	channel, err := grpc.NewClient(
		"passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(raw{}), grpc.MaxCallRecvMsgSize(64<<20)),
	)
	must(err)
	unary := func(message []byte) {
		var got []byte
		var trailer metadata.MD
		ctx := metadata.AppendToOutgoingContext(context.Background(), "x-own-bin", string(random(20)))
		must(channel.Invoke(ctx, "/echo/unary", &message, &got, grpc.Trailer(&trailer)))
		check(bytes.Equal(got, message), "message of", len(message), "came as", len(got))
		check(len(trailer.Get("x-trailing")) == 1, "trailer", trailer)
	}
	together(200, func(i int) { unary(random(i * 10)) })
	together(8, func(i int) { unary(random(5 << 20)) })

	description := &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}
	stream, err := channel.NewStream(context.Background(), description, "/echo/stream")
	must(err)
	for i := range 1000 {
		message, got := []byte(fmt.Sprint(i)), []byte(nil)
		must(stream.SendMsg(&message))
		must(stream.RecvMsg(&got))
		check(bytes.Equal(got, message), "stream", i)
	}
	must(stream.CloseSend())
	var nothing []byte
	check(stream.RecvMsg(&nothing) == io.EOF, "end of stream")

	err = channel.Invoke(context.Background(), "/echo/fail", &nothing, &nothing)
	check(status.Code(err) == codes.NotFound && status.Convert(err).Message() == "no é here", "error", err)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	err = channel.Invoke(ctx, "/echo/wait", &nothing, &nothing)
	check(status.Code(err) == codes.DeadlineExceeded, "deadline", err)
	cancelled, cancel := context.WithCancel(context.Background())
	stream, err = channel.NewStream(cancelled, description, "/echo/stream")
	must(err)
	message := []byte("x")
	must(stream.SendMsg(&message))
	must(stream.RecvMsg(&nothing))
	cancel()
	check(status.Code(stream.RecvMsg(&nothing)) == codes.Canceled, "cancel")
	unary([]byte("after"))
}

func check(good bool, what ...any) {
	if !good {
		fmt.Println(append([]any{"wrong:"}, what...)...)
		os.Exit(1)
	}
}

func must(err error) {
	check(err == nil, err)
}

func main() {
	switch os.Args[1] {
	case "serve-http":
		serveHTTP()
	case "serve-grpc":
		serveGRPC()
	case "check-http":
		checkHTTP(os.Args[2])
	case "check-grpc":
		checkGRPC(os.Args[2])
	}
	fmt.Println("ok")
}
