package service

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"net/url"
	"path/filepath"

	"github.com/boughdb/bough/internal/control"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/storage"
)

// BranchHistory is what `bough history` shows of a branch. Sizes are in bytes.
type BranchHistory struct {
	control.BranchHistory
	Data []HistoryVolume `json:"data,omitempty"` // of each snapshot, when it was asked for
}

// HistoryVolume is the size of a snapshot. Exclusive bytes come back when it goes; -1 when the file system cannot tell.
type HistoryVolume struct {
	Volume    string `json:"volume"`
	Data      int64  `json:"data_bytes"`
	Exclusive int64  `json:"exclusive_bytes"`
}

// LookHistory asks the server of a data directory what it keeps of branches' pasts; branch "" means all. With sizes it also
// measures the snapshots, at the lowest priority.
func LookHistory(ctx context.Context, dir, branch string, sizes bool) ([]BranchHistory, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, core.Wrap(err, "service.history", "")
	}
	l := layout{dir}
	var kept []control.BranchHistory
	if err := askServer(ctx, l, "/history?branch="+url.QueryEscape(branch), &kept); err != nil {
		return nil, err
	}
	out := make([]BranchHistory, len(kept))
	return out, gently(func() error {
		for i, h := range kept {
			out[i].BranchHistory = h
			for _, n := range h.Snapshots {
				if !sizes {
					break
				}
				use, err := storage.Measure(ctx, filepath.Join(l.volumes(), n.Volume), true)
				if errors.Is(err, fs.ErrNotExist) {
					continue // it has just gone
				}
				if err != nil {
					return err
				}
				out[i].Data = append(out[i].Data, HistoryVolume{n.Volume, use.Referenced, use.Exclusive})
			}
		}
		return nil
	})
}

// serveHistory answers `bough history`.
func (s *Server) serveHistory(w http.ResponseWriter, r *http.Request) {
	kept, err := s.control.Histories(r.Context(), r.FormValue("branch"))
	switch {
	case core.IsKind(err, core.KindNotFound):
		http.Error(w, core.UserMessage(err), http.StatusNotFound)
	case err != nil:
		s.log.Warn("cannot tell the operator", "error", err)
		http.Error(w, core.UserMessage(err), http.StatusServiceUnavailable)
	default:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(kept) // the reader is gone
	}
}
