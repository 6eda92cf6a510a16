package proxy

import "sync/atomic"

// Stats are the door's counters. All but Open and Sessions only grow.
type Stats struct {
	Open         int64 // client connections, at any stage
	Sessions     int64 // authenticated sessions
	Total        int64 // connections accepted
	AuthFailures int64 // wrong passwords and unknown roles
	Rejected     int64 // connections turned away before they were authenticated, AuthFailures included
	Cancels      int64 // cancel requests passed on
	Failed       int64 // authenticated sessions that got no compute
	FromClients  int64 // bytes relayed
	ToClients    int64 // bytes relayed
}

type counters struct {
	open, sessions, total, authFailures, rejected, cancels, failed, fromClients, toClients atomic.Int64
}

// Stats reads the counters.
func (s *Server) Stats() Stats {
	c := &s.stats
	return Stats{
		Open: c.open.Load(), Sessions: c.sessions.Load(), Total: c.total.Load(), AuthFailures: c.authFailures.Load(),
		Rejected: c.rejected.Load(), Cancels: c.cancels.Load(), Failed: c.failed.Load(),
		FromClients: c.fromClients.Load(), ToClients: c.toClients.Load(),
	}
}
