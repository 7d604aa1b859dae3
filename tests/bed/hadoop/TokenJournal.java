package org.apache.hadoop.hdfs.server.namenode;

import java.io.File;
import java.util.Arrays;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Set;

import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.hdfs.DistributedFileSystem;
import org.apache.hadoop.hdfs.protocol.ClientProtocol;
import org.apache.hadoop.hdfs.security.token.delegation.DelegationTokenIdentifier;
import org.apache.hadoop.hdfs.server.common.HdfsServerConstants;
import org.apache.hadoop.io.Text;
import org.apache.hadoop.ipc.RemoteException;
import org.apache.hadoop.security.UserGroupInformation;
import org.apache.hadoop.security.token.SecretManager.InvalidToken;
import org.apache.hadoop.security.token.Token;

/**
 * Reads in a NameNode's own journal which delegation tokens it has given out, with all that identifies them, and tries
 * each: whoever renews a token may cancel it, and a NameNode that does not know a token says so. In the package of the
 * journal's classes, because Hadoop has no other door to them.
 *
 * <p>Arguments: journal-folder configuration-folder principal keytab greatest-number-before [number…]. Leaves alone
 * tokens up to the greatest number before, and says nothing of them; does not try the numbers that follow. Prints a
 * line for each token on standard output: number, owner, and one of "untried", "unknown", "lapsed" (still in the
 * NameNode's books, but nobody renewed it in time, so that it is good for nothing) and "known". One that was in the books
 * is cancelled.
 */
public final class TokenJournal {
    private static final class Given {
        private final DelegationTokenIdentifier identifier;
        private long end;

        private Given(DelegationTokenIdentifier identifier, long end) {
            this.identifier = identifier;
            this.end = end;
        }
    }

    public static void main(String[] args) throws Exception {
        int before = Integer.parseInt(args[4]);
        Set<Integer> untried = new HashSet<>();
        for (String number : Arrays.asList(args).subList(5, args.length)) {
            untried.add(Integer.valueOf(number));
        }
        Map<Integer, Given> tokens = read(new File(args[0]));

        Configuration conf = new Configuration(false);
        conf.addResource(new Path(new File(args[1], "core-site.xml").toURI()));
        conf.addResource(new Path(new File(args[1], "hdfs-site.xml").toURI()));
        UserGroupInformation.setConfiguration(conf);
        UserGroupInformation.loginUserFromKeytab(args[2], args[3]);
        try (DistributedFileSystem files = (DistributedFileSystem) FileSystem.get(conf)) {
            ClientProtocol nameNode = files.getClient().getNamenode();
            for (Map.Entry<Integer, Given> token : tokens.entrySet()) {
                int number = token.getKey();
                if (number > before) {
                    String state = untried.contains(number) ? "untried" : state(nameNode, token.getValue());
                    System.out.println(number + " " + token.getValue().identifier.getUser().getShortUserName() + " " + state);
                }
            }
        }
    }

    private static String state(ClientProtocol nameNode, Given given) throws Exception {
        boolean hasEnded = given.end < System.currentTimeMillis();
        Token<DelegationTokenIdentifier> token =
            new Token<>(given.identifier.getBytes(), new byte[0], given.identifier.getKind(), new Text());
        try {
            nameNode.cancelDelegationToken(token);
            return hasEnded ? "lapsed" : "known";
        } catch (RemoteException error) {
            if (error.unwrapRemoteException() instanceof InvalidToken) {
                return "unknown";
            }
            throw error;
        } catch (InvalidToken error) {
            return "unknown";
        }
    }

    private static Map<Integer, Given> read(File folder) throws Exception {
        File[] files = folder.listFiles((where, name) -> name.startsWith("edits_"));
        // Their names begin with the number of their first transaction; the one that is written to comes last.
        Arrays.sort(files, (one, other) -> first(one).compareTo(first(other)));
        Map<Integer, Given> tokens = new LinkedHashMap<>();
        for (File file : files) {
            boolean inProgress = file.getName().contains("inprogress");
            long unknown = HdfsServerConstants.INVALID_TXID;
            try (EditLogFileInputStream stream = new EditLogFileInputStream(file, unknown, unknown, inProgress)) {
                for (FSEditLogOp op = stream.readOp(); op != null; op = stream.readOp()) {
                    apply(op, tokens);
                }
            }
        }
        return tokens;
    }

    private static String first(File file) {
        return file.getName().replace("edits_", "").replace("inprogress_", "");
    }

    private static void apply(FSEditLogOp op, Map<Integer, Given> tokens) {
        if (op instanceof FSEditLogOp.GetDelegationTokenOp) {
            FSEditLogOp.GetDelegationTokenOp get = (FSEditLogOp.GetDelegationTokenOp) op;
            tokens.put(get.token.getSequenceNumber(), new Given(get.token, get.expiryTime));
        } else if (op instanceof FSEditLogOp.RenewDelegationTokenOp) {
            FSEditLogOp.RenewDelegationTokenOp renew = (FSEditLogOp.RenewDelegationTokenOp) op;
            Given given = tokens.get(renew.token.getSequenceNumber());
            if (given != null) {
                given.end = renew.expiryTime;
            }
        }
    }

    private TokenJournal() {}
}
