// A plain Go reverse proxy: net/http/httputil as it comes, with enough idle connections kept.
// `reverseproxy HOST:PORT TARGET [h2c]`: with h2c both sides are HTTP/2 without TLS.
package main

import (
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"sync"
)

type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte  { return *b.pool.Get().(*[]byte) }
func (b *buffers) Put(x []byte) { b.pool.Put(&x) }

func main() {
	target, err := url.Parse("http://" + os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost = 2000, 2000
	transport.DisableCompression = true
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport = transport
	proxy.BufferPool = &buffers{sync.Pool{New: func() any { x := make([]byte, 32<<10); return &x }}}
	server := &http.Server{Addr: os.Args[1], Handler: proxy}
	if len(os.Args) > 3 {
		h2c := new(http.Protocols)
		h2c.SetUnencryptedHTTP2(true)
		server.Protocols, transport.Protocols = h2c, h2c
		proxy.FlushInterval = -1
	}
	log.Fatal(server.ListenAndServe())
}
