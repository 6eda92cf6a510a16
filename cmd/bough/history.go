package main

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/boughdb/bough/internal/service"
)

// historyCommand tells what is kept of branches' pasts.
func historyCommand() *cobra.Command {
	var dir string
	var sizes, asJSON bool
	cmd := &cobra.Command{
		Use:   "history [branch]",
		Short: "Show which moments of branches can be reached, what is kept for that, and why",
		Long: `Show how far back each branch can be branched from (bough branches create --at), and what is kept for that: snapshots of its
data, and archived WAL. How long it is kept is the project's --history-retention. With a branch, named by id or name, every
snapshot is listed with its reasons.

--sizes asks the file system what each snapshot holds that nothing else does (OWN): what comes back when it goes. It reads
the lists of blocks of every file, at the lowest priority. This works on the server's machine, while the server runs, as the
user that runs it.`,
		Example: "  bough history\n  bough history main --sizes\n  bough history --json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			branch := ""
			if len(args) > 0 {
				branch = args[0]
			}
			list, err := service.LookHistory(cmd.Context(), dir, branch, sizes)
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(os.Stdout)
				enc.SetIndent("", "  ")
				return enc.Encode(list)
			}
			return printHistory(list, branch != "")
		},
	}
	dataDirFlag(cmd.Flags(), &dir)
	cmd.Flags().BoolVar(&sizes, "sizes", false, "measure the snapshots")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printHistory(list []service.BranchHistory, detailed bool) error {
	w := table("PROJECT", "BRANCH", "KEPT FOR", "BACK TO", "LSN", "SNAPSHOTS", "OWN DATA", "WAL", "")
	for _, h := range list {
		since, lsn, note := "only the head", "–", ""
		if h.Since != nil {
			since, lsn = h.Since.Local().Format(time.DateTime), h.SinceLSN
		}
		if h.NeedParent {
			note = "and its parent's, for the oldest moments"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", h.ProjectID, named(h.Branch, h.BranchID), h.Retention, since, lsn,
			len(h.Snapshots), ownData(h), size(h.WAL), note)
	}
	if err := w.Flush(); err != nil || !detailed {
		return err
	}
	for _, h := range list {
		fmt.Println()
		w := table("FROM", "LSN", "TAKEN BECAUSE", "IN", "KEPT BECAUSE")
		for _, n := range h.Snapshots {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", n.At.Local().Format(time.DateTime), n.LSN, n.Reason, n.Took.Round(time.Millisecond), n.Why)
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// ownData is what a branch's snapshots hold alone, as far as that was measured.
func ownData(h service.BranchHistory) string {
	if len(h.Data) == 0 {
		return "–"
	}
	sum := int64(0)
	for _, v := range h.Data {
		if v.Exclusive < 0 {
			return "?"
		}
		sum += v.Exclusive
	}
	return size(sum)
}
