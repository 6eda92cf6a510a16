package proxy

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strconv"
	"syscall"
	"time"
)

// keepAlive finds a dead peer in about two minutes.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 60 * time.Second, Interval: 15 * time.Second, Count: 4}

// Listen opens a door's address. *.localhost may resolve to 127.0.0.1 or to ::1, so a loopback address (127.0.0.1, ::1,
// localhost) means both, on one port; a machine without ::1 gets 127.0.0.1 only.
func Listen(ctx context.Context, addr string, log *slog.Logger) ([]net.Listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: keepAlive}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if host != "127.0.0.1" && host != "::1" && host != "localhost" {
		ln, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		return []net.Listener{ln}, nil
	}
	for attempt := 0; ; attempt++ {
		v4, err := lc.Listen(ctx, "tcp4", net.JoinHostPort("127.0.0.1", port))
		if err != nil {
			return nil, err
		}
		got := strconv.Itoa(v4.Addr().(*net.TCPAddr).Port)
		v6, err := lc.Listen(ctx, "tcp6", net.JoinHostPort("::1", got))
		switch {
		case err == nil:
			return []net.Listener{v4, v6}, nil
		case errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EAFNOSUPPORT):
			log.Info("this machine has no ::1, listening on 127.0.0.1 only", "port", got)
			return []net.Listener{v4}, nil
		}
		_ = v4.Close()
		// A port that the kernel chose may be taken on the other address; a port that was asked for must be free on both,
		// or clients would reach somebody else.
		if port != got && attempt < 20 && errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		return nil, err
	}
}
