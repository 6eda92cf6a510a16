package e2e

import (
	"strings"
	"testing"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/sdk"
)

// TestPooledClientsOutliveTheirCompute connects to the pooled host, and lets the compute fall asleep, restart and crash.
func TestPooledClientsOutliveTheirCompute(t *testing.T) {
	s := start(t)
	p := s.projectWith(t, sdk.ProjectCreate{DefaultEndpointSettings: suspendAfter(1)})
	direct := strings.Replace(p.URI, "-pooler.", ".", 1)
	uri := strings.Replace(direct, p.Endpoint+".", p.Endpoint+"-pooler.", 1)
	pooled := s.connect(t, uri)
	own := s.connect(t, direct)
	pid := value[int](t, pooled, "select pg_backend_pid()")
	_ = value[int](t, own, "select 1")

	// Neither the client nor the session behind it keeps the compute awake.
	p.awaitState(t, p.Endpoint, api.Idle)
	if got := value[int](t, pooled, "select pg_backend_pid()"); got == pid {
		t.Error("the session survived a suspension")
	}
	if err := own.Ping(t.Context()); sqlState(err) != "57P01" {
		t.Errorf("the direct session: %v", err)
	}
	p.suspend(t, p.Endpoint)
	if n := value[int](t, pooled, "select 1"); n != 1 {
		t.Error(n)
	}
	p.ops(t)(s.RestartEndpoint(t.Context(), p.ID, p.Endpoint))
	if n := value[int](t, pooled, "select 2"); n != 2 {
		t.Error(n)
	}
}
