// Both ends of gRPC calls, without a service definition: messages are bytes.
//
//	calls serve HOST:PORT                                    also answers probes as a queue-proxy, over HTTP/1.1 and h2c
//	calls KIND HOST:PORT REVISION CONNECTIONS CALLS SECONDS  prints messages, p50 and p99 in milliseconds
//
// KIND: unary (CALLS in flight), echo (CALLS bidirectional streams, the next message when the last came back) or
// tokens (CALLS streams of a message per 20 ms, times are between messages).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
)

const period = 20 * time.Millisecond

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

var _ encoding.CodecV2 = raw{}

func answer(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	for {
		var message []byte
		if err := stream.RecvMsg(&message); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if method != "/bench/tokens" {
			if err := stream.SendMsg(&message); err != nil {
				return err
			}
			continue
		}
		ticks := time.NewTicker(period)
		defer ticks.Stop()
		for {
			if err := stream.SendMsg(&message); err != nil {
				return err
			}
			select {
			case <-ticks.C:
			case <-stream.Context().Done():
				return nil
			}
		}
	}
}

func serve(address string) error {
	calls := grpc.NewServer(grpc.UnknownServiceHandler(answer), grpc.ForceServerCodecV2(raw{}))
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			calls.ServeHTTP(w, r)
		} else {
			_, _ = io.WriteString(w, "queue")
		}
	})
	server := &http.Server{Addr: address, Handler: handler, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	return server.ListenAndServe()
}

// times of one call's messages.
type times []time.Duration

func unary(ctx context.Context, conn *grpc.ClientConn, message []byte) (found times, err error) {
	for {
		var back []byte
		began := time.Now()
		if err := conn.Invoke(ctx, "/bench/unary", &message, &back); err != nil {
			return found, err
		}
		found = append(found, time.Since(began))
	}
}

func stream(ctx context.Context, conn *grpc.ClientConn, method string, message []byte) (found times, err error) {
	opened, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		return nil, err
	}
	last := time.Now()
	for sent := false; ; {
		if !sent || method == "/bench/echo" {
			if err := opened.SendMsg(&message); err != nil {
				return found, err
			}
			sent = true
		}
		var back []byte
		if err := opened.RecvMsg(&back); err != nil {
			return found, err
		}
		now := time.Now()
		found = append(found, now.Sub(last))
		last = now
	}
}

func load(kind, address, revision string, connections, calls int, seconds float64) error {
	// No deadline: it would travel with the calls, and end them at the other side first.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	time.AfterFunc(time.Duration(seconds*float64(time.Second)), cancel)
	ctx = metadata.AppendToOutgoingContext(ctx,
		"knative-serving-namespace", "default", "knative-serving-revision", revision)
	message := slices.Repeat([]byte("x"), 100)
	var (
		all    times
		failed error
		lock   sync.Mutex
		done   sync.WaitGroup
		conns  []*grpc.ClientConn
	)
	for range connections {
		conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodecV2(raw{})))
		if err != nil {
			return err
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	for i := range calls {
		done.Go(func() {
			var found times
			var err error
			if conn := conns[i%connections]; kind == "unary" {
				found, err = unary(ctx, conn, message)
			} else {
				found, err = stream(ctx, conn, "/bench/"+kind, message)
			}
			lock.Lock()
			defer lock.Unlock()
			all = append(all, found...)
			if ctx.Err() == nil {
				failed = errors.Join(failed, err)
			}
		})
	}
	done.Wait()
	if failed == nil && len(all) == 0 {
		failed = errors.New("no message came back")
	}
	if failed != nil {
		return failed
	}
	slices.Sort(all)
	at := func(share float64) float64 {
		return all[min(len(all)-1, int(share*float64(len(all))))].Seconds() * 1e3
	}
	fmt.Println(len(all), at(0.5), at(0.99))
	return nil
}

func main() {
	log.SetFlags(0)
	if len(os.Args) == 3 && os.Args[1] == "serve" {
		log.Fatal(serve(os.Args[2]))
	}
	if len(os.Args) != 7 {
		log.Fatal("calls serve HOST:PORT | calls unary|echo|tokens HOST:PORT REVISION CONNECTIONS CALLS SECONDS")
	}
	connections, err1 := strconv.Atoi(os.Args[4])
	calls, err2 := strconv.Atoi(os.Args[5])
	seconds, err3 := strconv.ParseFloat(os.Args[6], 64)
	if err := errors.Join(err1, err2, err3); err != nil {
		log.Fatal(err)
	}
	if err := load(os.Args[1], os.Args[2], os.Args[3], connections, calls, seconds); err != nil {
		log.Fatal(err)
	}
}
